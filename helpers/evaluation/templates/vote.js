(function () {
  "use strict";
  var find = function (id) { return document.getElementById(id); };
  var data = JSON.parse(find("data").textContent);
  var items = data.items;
  var criteria = ["concrete", "on_topic", "structure"];
  var keys = { 1: "a", 2: "b", 3: "tie", 4: "both_bad", a: "a", b: "b" };
  var columns = ["item_id", "choice", "concrete", "on_topic", "structure", "voter", "seconds"];
  var state = { voter: "", place: 0, votes: {} };
  var since = 0;

  /* A page opened from a file, or in a private window, may have no storage: then votes live as long as the page. */
  function keep() {
    try { localStorage.setItem("votes-" + data.page, JSON.stringify(state)); } catch (error) { /* see above */ }
  }

  function restore() {
    try {
      var saved = JSON.parse(localStorage.getItem("votes-" + data.page));
      if (saved && typeof saved.voter === "string" && saved.votes && items[saved.place]) { state = saved; return true; }
    } catch (error) { /* see above */ }
    return false;
  }

  function screen(name) {
    ["start", "vote", "end"].forEach(function (id) { find(id).hidden = id !== name; });
    scrollTo(0, 0);
  }

  function said() { return Object.keys(state.votes).filter(function (id) { return state.votes[id].choice; }).length; }

  function vote() {
    var id = items[state.place].id;
    if (!state.votes[id]) { state.votes[id] = { choice: "", concrete: "", on_topic: "", structure: "", seconds: 0 }; }
    return state.votes[id];
  }

  function clock() {
    var now = Date.now();
    if (since && !find("vote").hidden) { vote().seconds += (now - since) / 1000; }
    since = document.hidden ? 0 : now;
  }

  function fill(id, text) {
    find(id).textContent = text.trim() ? text : "This answer is empty.";
    find(id).classList.toggle("none", !text.trim());
  }

  function show(place) {
    clock();
    state.place = place;
    screen("vote");
    var item = items[place], now = vote();
    find("prompt").textContent = item.prompt;
    fill("a", item.a);
    fill("b", item.b);
    find("count").textContent = "Pair " + (place + 1) + " of " + items.length;
    find("progress").value = said();
    find("back").disabled = place === 0;
    find("next").disabled = !now.choice;
    buttons().forEach(function (button) {
      button.setAttribute("aria-pressed", String(button.getAttribute("data-choice") === now.choice));
    });
    Array.prototype.forEach.call(document.querySelectorAll("#ticks input"), function (input) {
      input.checked = now[input.name] === input.value;
    });
    keep();
    find("prompt").focus({ preventScroll: true });
  }

  function buttons() { return Array.prototype.slice.call(document.querySelectorAll(".choice")); }

  function forward() { if (state.place + 1 < items.length) { show(state.place + 1); } else { finish(); } }

  function choose(choice) {
    vote().choice = choice;
    forward();
  }

  function finish() {
    clock();
    keep();
    screen("end");
    var open = items.length - said();
    find("summary").textContent = said() + " of " + items.length + " pairs voted on"
      + (open ? "; " + open + " still open." : ".");
    find("csv").value = table();
    find("saved").textContent = "";
    find("thanks").focus({ preventScroll: true });
  }

  /* A leading apostrophe keeps spreadsheets from reading a name as a formula; the notebook takes it off again. */
  function cell(value) {
    var text = String(value).replace(/[\r\n]+/g, " ");
    text = text.replace(/(^|;)(?=[\s"]*[=+\-@\t])/g, "$1'");
    return /[",;]/.test(text) ? '"' + text.replace(/"/g, '""') + '"' : text;
  }

  function table() {
    var lines = [columns.join(",")];
    items.forEach(function (item) {
      var now = state.votes[item.id];
      if (!now || !now.choice) { return; }
      var row = [item.id, now.choice].concat(criteria.map(function (name) { return now[name]; }));
      lines.push(row.concat([state.voter, now.seconds.toFixed(1)]).map(cell).join(","));
    });
    return lines.join("\r\n") + "\r\n";
  }

  function save() {
    var link = document.createElement("a");
    var name = state.voter.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-+|-+$/g, "") || "voter";
    link.href = URL.createObjectURL(new Blob(["\ufeff" + table()], { type: "text/csv;charset=utf-8" }));
    link.download = "votes-" + name + "-" + state.mark + ".csv";
    document.body.appendChild(link);
    link.click();
    link.remove();
    setTimeout(function () { URL.revokeObjectURL(link.href); }, 10000);
    find("saved").textContent = "Saved as " + link.download + ".";
  }

  function fresh() {
    if (!confirm("Clear these votes for the next voter? Save them first.")) { return; }
    state = { voter: "", place: 0, votes: {} };
    since = 0;
    keep();
    find("voter").value = "";
    screen("start");
  }

  find("begin").addEventListener("submit", function (event) {
    event.preventDefault();
    state.mark = state.mark || Math.random().toString(36).slice(2, 6);  // two voters of one name, two files
    state.voter = find("voter").value.trim() || "voter-" + state.mark;
    show(state.place);
  });
  find("back").addEventListener("click", function () { show(state.place - 1); });
  find("next").addEventListener("click", forward);
  find("save").addEventListener("click", save);
  find("review").addEventListener("click", function () { show(state.place); });
  find("fresh").addEventListener("click", fresh);
  find("ticks").addEventListener("change", function (event) {
    vote()[event.target.name] = event.target.value;
    keep();
  });
  buttons().forEach(function (button) {
    button.addEventListener("click", function () { choose(button.getAttribute("data-choice")); });
  });
  document.addEventListener("visibilitychange", clock);
  document.addEventListener("keydown", function (event) {
    var typing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
    if (find("vote").hidden || typing || event.repeat || event.ctrlKey || event.metaKey || event.altKey) { return; }
    var key = event.key.toLowerCase();
    if (keys[key]) { event.preventDefault(); choose(keys[key]); }
  });

  if (restore()) { find("voter").value = state.voter; if (said()) { find("go").textContent = "Continue"; } }
  screen("start");
}());
