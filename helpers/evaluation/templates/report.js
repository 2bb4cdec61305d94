(function () {
  "use strict";
  var root = document.documentElement;
  var find = function (id) { return document.getElementById(id); };
  var list = find("cards");
  var cards = list ? Array.prototype.slice.call(list.querySelectorAll(".card")) : [];

  function remembered(value) {
    try {
      if (value === undefined) { return localStorage.getItem("side-by-side-theme"); }
      localStorage.setItem("side-by-side-theme", value);
    } catch (error) { /* A page opened from a file may have no storage. */ }
    return null;
  }

  function isDark() {
    var chosen = root.getAttribute("data-theme");
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  }

  function theme() {
    var button = find("theme");
    var saved = remembered();
    if (saved === "dark" || saved === "light") { root.setAttribute("data-theme", saved); }
    function name() { button.textContent = isDark() ? "Light mode" : "Dark mode"; }
    button.hidden = false;
    name();
    button.addEventListener("click", function () {
      root.setAttribute("data-theme", isDark() ? "light" : "dark");
      remembered(root.getAttribute("data-theme"));
      name();
    });
  }

  function number(card, name) {
    var value = card.getAttribute("data-" + name);
    return value === null || value === "" ? null : Number(value);
  }

  /* Cards without the number come last, in their own order. */
  function by(name, sign) {
    return function (a, b) {
      var x = number(a, name), y = number(b, name);
      if (x === null || y === null) { return (x === null) - (y === null) || number(a, "order") - number(b, "order"); }
      return sign * (x - y) || number(a, "order") - number(b, "order");
    };
  }

  function hurtFirst(a, b) {
    var x = number(a, "hurt"), y = number(b, "hurt");
    if (x === null && y === null) { return number(a, "order") - number(b, "order"); }
    return by("hurt", 1)(a, b);
  }

  var orders = { order: by("order", 1), gain: by("gain", -1), hurt: hurtFirst, length: by("length", -1) };

  function update() {
    var words = find("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    var category = find("category").value;
    var shown = 0;
    cards.forEach(function (card) {
      var text = card.searched || (card.searched = card.textContent.toLowerCase());
      var keep = words.every(function (word) { return text.indexOf(word) >= 0; })
        && (!category || card.getAttribute("data-category") === category)
        && (!find("differing").checked || card.getAttribute("data-differs") === "1")
        && (!find("whole").checked || card.getAttribute("data-truncated") === "0")
        && (!find("matched").checked || card.getAttribute("data-matched") === "1");
      card.hidden = !keep;
      shown += keep;
    });
    cards.slice().sort(orders[find("sort").value]).forEach(function (card) { list.appendChild(card); });
    list.classList.toggle("marks", find("marks").checked);
    find("count").textContent = shown + " of " + cards.length + " prompts shown";
  }

  function clip(text) {
    var button = document.createElement("button");
    button.type = "button";
    button.className = "button more";
    function set(whole) {
      text.classList.toggle("clipped", !whole);
      button.textContent = whole ? "Show less" : "Show the whole answer";
      button.setAttribute("aria-expanded", String(whole));
    }
    button.addEventListener("click", function () { set(text.classList.contains("clipped")); });
    text.parentNode.insertBefore(button, text.nextSibling);
    set(false);
  }

  function printing() {
    var opened = [];
    addEventListener("beforeprint", function () {
      opened = Array.prototype.slice.call(document.querySelectorAll("details.prints:not([open])"));
      opened.forEach(function (fold) { fold.open = true; });
    });
    addEventListener("afterprint", function () { opened.forEach(function (fold) { fold.open = false; }); });
  }

  if (innerWidth >= 768) {
    Array.prototype.forEach.call(document.querySelectorAll("details.wide"), function (fold) { fold.open = true; });
  }
  theme();
  printing();
  if (!cards.length) { return; }
  find("tools").hidden = false;
  find("tools").addEventListener("input", update);
  find("tools").addEventListener("submit", function (event) { event.preventDefault(); });
  find("tools").addEventListener("reset", function () { setTimeout(update, 0); });
  Array.prototype.forEach.call(list.querySelectorAll(".ask .said, .side .said"), function (text) {
    if (text.offsetHeight > (innerWidth < 768 ? 170 : text.parentNode.className === "ask" ? 300 : 640)) { clip(text); }
  });
  update();
}());
