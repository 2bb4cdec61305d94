"""Votes are blind until they are revealed, and checked before they are counted."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace

import pytest
from browser import POLICY, Page, needs_chromium, run_in_page
from hostile import HOSTILE, hostile_comparison, plain_comparison

from helpers.core.errors import EvaluationError
from helpers.core.runs import RunDirectory
from helpers.core.text import visible
from helpers.evaluation.overview import look_over
from helpers.evaluation.votes.ballot import (
    CRITERIA,
    BlindItem,
    KeyItem,
    Vote,
    VoteKey,
    blind_items,
    read_key,
    read_votes,
    write_key,
    write_vote_page,
)
from helpers.evaluation.votes.tally import reveal
from helpers.evaluation.votes.vote import check_votes, count_votes, describe_votes, prepare_vote, warn_of_cut_pairs

HEADER = "item_id,choice,concrete,on_topic,structure,voter,seconds"
KEY = VoteKey(
    "base",
    "tuned",
    {"i1": KeyItem("p1", "base", "tuned"), "i2": KeyItem("p2", "tuned", "base"), "i1b": KeyItem("p1", "tuned", "base")},
)


def swapped(comparison):
    """Exchange what the two arms said."""
    other = {"base": "tuned", "tuned": "base"}
    said = {(answer.prompt_id, answer.arm): answer.text for answer in comparison.answers}
    answers = tuple(replace(a, text=said[a.prompt_id, other[a.arm]]) for a in comparison.answers)
    return replace(comparison, answers=answers)


def data_of(page):
    """Read the JSON that the page's script reads."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_items_follow_the_seed():
    """The same seed gives the same items and key; another seed gives others."""
    comparison = plain_comparison(8)
    assert blind_items(comparison, 1) == blind_items(comparison, 1)
    assert blind_items(comparison, 1) != blind_items(comparison, 2)


def test_sides_are_balanced():
    """Each arm is on the left in half of the first showings, whatever the seed."""
    for seed in range(20):
        items, key = blind_items(plain_comparison(8), seed, repeats=0)
        assert Counter(key.items[item.id].a for item in items) == {"base": 4, "tuned": 4}


def test_sides_do_not_follow_order():
    """At each place of the page the tuned arm is on the left for about half of the seeds."""
    left = Counter()
    for seed in range(400):
        _, key = blind_items(plain_comparison(4), seed, repeats=0)
        left.update(place for place, item in enumerate(key.items.values()) if item.a == "tuned")
    assert all(150 < left[place] < 250 for place in range(4))


def test_key_tells_who_said_what():
    """Under the key, each item's left and right text are the answers of the arms it names."""
    comparison = plain_comparison(6)
    items, key = blind_items(comparison, 3)
    said = {(answer.prompt_id, answer.arm): answer.text for answer in comparison.answers}
    for item in items:
        entry = key.items[item.id]
        assert (item.a, item.b) == (said[entry.prompt_id, entry.a], said[entry.prompt_id, entry.b])


def test_repeats_come_later_with_sides_exchanged():
    """Two pairs come twice, never in a row, and the second time the other way round."""
    for seed in range(50):
        _, key = blind_items(plain_comparison(6), seed, repeats=2)
        shows = list(key.items.values())
        twice = [name for name, count in Counter(show.prompt_id for show in shows).items() if count == 2]
        assert (len(shows), len(twice)) == (8, 2)
        for name in twice:
            (first, one), (second, two) = [(at, show) for at, show in enumerate(shows) if show.prompt_id == name]
            assert second > first + 1
            assert (one.a, one.b) == (two.b, two.a)


def test_one_prompt_can_be_voted_on():
    """A single pair is shown, and again with sides exchanged."""
    items, _ = blind_items(plain_comparison(1), 1)
    assert (items[0].a, items[0].b) == (items[1].b, items[1].a)
    assert len({item.id for item in items}) == 2


def test_ids_do_not_depend_on_the_arm():
    """Exchanging what the arms said changes no id and no order: only the texts decide."""
    one, _ = blind_items(plain_comparison(6), 5)
    two, _ = blind_items(swapped(plain_comparison(6)), 5)
    assert [item.id for item in one] == [item.id for item in two]
    assert all(re.fullmatch("i[0-9a-f]{11}", item.id) for item in one)


def test_ids_change_with_the_answers():
    """Votes on an old page cannot count for new answers, because an item whose answer changed has a new id."""
    comparison = plain_comparison(2)
    changed = replace(comparison, answers=(replace(comparison.answers[0], text="other"), *comparison.answers[1:]))
    old, new = ({item.id for item in blind_items(c, 1, repeats=0)[0]} for c in (comparison, changed))
    assert len(old & new) == 1


def test_page_depends_on_sides_alone(tmp_path):
    """The page is a function of title and items, which hold nothing but ids and texts; no arm is named in it."""
    items, _ = blind_items(plain_comparison(6), 5)
    page = write_vote_page(tmp_path / "vote.html", items, "Which is better?").read_text(encoding="utf-8")
    assert [set(item) for item in data_of(page)["items"]] == [{"id", "prompt", "a", "b"}] * 8
    lower = POLICY.sub("", page).lower()
    assert [
        word for word in ("tuned", "adapter", "base", "arm", "seed", "3407") if re.search(rf"\b{word}", lower)
    ] == []


def test_page_is_self_contained(tmp_path):
    """The page names no host, holds one script by its hash, and may not load or send anything."""
    items, _ = blind_items(plain_comparison(2), 5)
    page = write_vote_page(tmp_path / "vote.html", items, "Which?").read_text(encoding="utf-8")
    assert re.findall(r"(?:https?:|url\(|@import|fetch\(|XMLHttp|sendBeacon)", page) == []
    policy = Page(page).tags("meta")[1]["content"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert len(Page(page).tags("script")) == 2


def test_hostile_texts_stay_data(tmp_path):
    """Hostile texts are JSON that ends nothing: the page has the elements of a harmless one, and the texts whole."""
    items, _ = blind_items(hostile_comparison(), 5, repeats=0)
    page = write_vote_page(tmp_path / "vote.html", items, HOSTILE["closed-style"]).read_text(encoding="utf-8")
    calm = write_vote_page(tmp_path / "calm.html", [BlindItem("i", "p", "l", "r")] * 2, "t").read_text(encoding="utf-8")
    assert [tag for tag, _ in Page(page).elements] == [tag for tag, _ in Page(calm).elements]
    shown = {text for item in data_of(page)["items"] for text in (item["a"], item["b"])}
    assert shown == set(map(visible, HOSTILE.values()))


def test_nothing_to_vote_on_is_refused():
    """Arms that answered nothing in common give advice."""
    with pytest.raises(EvaluationError, match="base and again"):
        blind_items(plain_comparison(), 1, arms=("base", "again"))


def test_key_round_trip(tmp_path):
    """A key that was written is read back equal."""
    _, key = blind_items(plain_comparison(), 1)
    assert read_key(write_key(tmp_path / "deep" / "key.json", key)) == key


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "other"}', '{"format": "side-by-side vote key 1"}'])
def test_other_files_are_no_keys(tmp_path, text):
    """A file that is not a key is refused with a remedy."""
    (tmp_path / "key.json").write_text(text)
    with pytest.raises(EvaluationError, match="Pass the key"):
        read_key(tmp_path / "key.json")
    with pytest.raises(EvaluationError, match="Pass the key"):
        read_key(tmp_path / "none.json")


def csv_file(tmp_path, *lines, name="votes.csv", header=HEADER, encoding="utf-8"):
    """Write a votes file."""
    path = tmp_path / name
    path.write_bytes("\r\n".join((header, *lines, "")).encode(encoding))
    return path


def test_votes_are_read(tmp_path):
    """A good line gives a vote; empty cells mean that nothing was said; blank lines and a BOM are no matter."""
    path = csv_file(tmp_path, "i1,a,both,,neither,Zoë,4.5", ",,,,,,", "i2,both_bad,,,,Zoë,", encoding="utf-8-sig")
    assert read_votes([path], KEY) == (
        Vote("i1", "a", "both", "", "neither", "Zoë", 4.5),
        Vote("i2", "both_bad", voter="Zoë"),
    )


def test_semicolons_of_spreadsheets_are_read(tmp_path):
    """A file saved again by a spreadsheet with semicolons and decimal commas is understood."""
    path = csv_file(tmp_path, "i1;left;;;;Ann, B.;4,5", header=HEADER.replace(",", ";"))
    assert read_votes([path], KEY) == (Vote("i1", "a", voter="Ann, B.", seconds=4.5),)


def test_several_voters_are_merged(tmp_path):
    """Files of several people are read together, extra columns ignored."""
    one = csv_file(tmp_path, "i1,left,,,,Ann,1", name="a.csv")
    two = csv_file(tmp_path, "i1,right,,,,Ben,1,x", name="b.csv", header=f"{HEADER},note")
    assert [vote.voter for vote in read_votes([one, two], KEY)] == ["Ann", "Ben"]


@pytest.mark.parametrize(
    ("line", "field", "got"),
    [
        ("i9,left,,,,Ann,1", "votes.csv line 2, item_id", "i9"),
        ("i1,middle,,,,Ann,1", "votes.csv line 2, choice", "middle"),
        ("i1,left,yes,,,Ann,1", "votes.csv line 2, concrete", "yes"),
        ("i1,left,,,,,1", "votes.csv line 2, voter", ""),
        ("i1,left,,,,Ann,soon", "votes.csv line 2, seconds", "soon"),
        ("i1,left,,,,Ann,-1", "votes.csv line 2, seconds", "-1"),
        ("i1,left,,,,Ann,nan", "votes.csv line 2, seconds", "nan"),
        ("i1", "votes.csv line 2, choice", ""),
    ],
)
def test_bad_cells_are_refused(tmp_path, line, field, got):
    """The error names file, line and column, and what stands there."""
    with pytest.raises(EvaluationError) as caught:
        read_votes([csv_file(tmp_path, line)], KEY)
    assert (caught.value.field, caught.value.got) == (field, got)
    assert caught.value.remedy


def test_second_vote_of_a_voter_is_refused(tmp_path):
    """The same file twice, or two people of one name, is an error and not two votes."""
    path = csv_file(tmp_path, "i1,left,,,,Ann,1")
    with pytest.raises(EvaluationError, match="each file once"):
        read_votes([path, path], KEY)
    with pytest.raises(EvaluationError, match="a second vote of Ann for i1"):
        read_votes([csv_file(tmp_path, "i1,a,,,,Ann,1", "i1,b,,,,Ann,1")], KEY)


def test_missing_columns_are_refused(tmp_path):
    """A file without a column is refused before any line is read."""
    path = csv_file(tmp_path, "i1,left,,,,1", header=HEADER.replace("voter,", ""))
    with pytest.raises(EvaluationError, match="Add voter"):
        read_votes([path], KEY)


def test_other_encodings_are_refused(tmp_path):
    """A file saved as Latin-1 or UTF-16 is refused, not read as nonsense."""
    for encoding in ("latin-1", "utf-16"):
        with pytest.raises(EvaluationError, match="UTF-8"):
            read_votes([csv_file(tmp_path, "i1,left,,,,Zoë,1", encoding=encoding)], KEY)


def test_missing_and_empty_files_are_refused(tmp_path):
    """No file and no votes are told apart."""
    with pytest.raises(EvaluationError, match="a file that exists"):
        read_votes([tmp_path / "none.csv"], KEY)
    with pytest.raises(EvaluationError, match="at least one vote"):
        read_votes([csv_file(tmp_path)], KEY)


def test_reveal_counts_for_the_tuned_arm():
    """A on i1 is base, A on i2 is tuned; ties and both bad are no preference."""
    votes = [Vote("i1", "a", voter="Ann"), Vote("i2", "a", voter="Ann")]
    votes += [Vote("i1", "b", voter="Ben"), Vote("i2", "both_bad", voter="Ben")]
    found = reveal(votes, KEY)
    assert found.merged_outcomes == {"p1": "tie", "p2": "win"}
    assert [ballot.both_bad for ballot in found.ballots] == [False, False, False, True]
    assert found.outcomes["Ben"] == {"p1": "win", "p2": "tie"}


def test_repeated_pair_counts_once():
    """A voter who says A both times prefers a letter, not an arm: the pair is a tie and the voter not consistent."""
    found = reveal([Vote("i1", "a", voter="Ann"), Vote("i1b", "a", voter="Ann")], KEY)
    assert found.merged_outcomes == {"p1": "tie"}
    assert found.repeats == {"Ann": (("loss", "win"),)}
    found = reveal([Vote("i1", "b", voter="Ann"), Vote("i1b", "a", voter="Ann")], KEY)
    assert (found.merged_outcomes, found.repeats) == ({"p1": "win"}, {"Ann": (("win", "win"),)})


def test_ticks_are_shares_of_those_who_answered():
    """A tick for A or B counts for the arm behind it; votes that did not say are left out."""
    votes = [Vote("i1", "tie", concrete="a", voter="A"), Vote("i2", "tie", concrete="both", voter="A")]
    votes += [Vote("i1", "tie", concrete="neither", voter="B"), Vote("i2", "tie", voter="B")]
    assert describe_votes(reveal(votes, KEY)).splitlines()[0] == "Concrete and plausible: tuned 1, base 2, of 3 votes."


def test_the_three_questions_stand_in_the_result():
    """So do calls of both bad, what voters share, and how steady each is."""
    votes = [Vote("i1", "b", concrete="b", on_topic="both", voter="Ann"), Vote("i1b", "a", voter="Ann")]
    votes += [Vote("i1", "b", concrete="neither", voter="Ben"), Vote("i2", "both_bad", voter="Ben")]
    assert describe_votes(reveal(votes, KEY)).splitlines() == [
        "Concrete and plausible: tuned 1, base 0, of 2 votes.",
        "On topic: tuned 1, base 1, of 1 votes.",
        "Both bad: 1 of 4 votes.",
        "2 voters gave the same vote in 100 % of shared cases.",
        "Ann judged 1 of 1 repeated pairs alike both times.",
    ]
    assert describe_votes(None) == "No votes yet: this part is skipped."


def test_voters_of_one_name_are_told_apart_by_file(tmp_path):
    """Two Anns are two voters; the same votes in two files are one person's."""
    one = csv_file(tmp_path, "i1,a,,,,Ann,1", name="ann-1.csv")
    two = csv_file(tmp_path, "i1,b,,,,Ann,2", "i2,a,,,,Ann,3", name="ann-2.csv")
    ben = csv_file(tmp_path, "i1,a,,,,Ben,1", name="ben.csv")
    voters = [vote.voter for vote in read_votes([one, two, ben], KEY)]
    assert voters == ["Ann (ann-1)", "Ann (ann-2)", "Ann (ann-2)", "Ben"]
    copy = csv_file(tmp_path, "i1,a,,,,Ann,1", name="copy.csv")
    with pytest.raises(EvaluationError, match="Pass each file once"):
        read_votes([one, copy], KEY)


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        ("'=1+1", "=1+1"),
        ("'@sum", "@sum"),
        ("Ann;'-1", "Ann;-1"),
        ('Ann;\'""-1', 'Ann;"-1'),
        ("'quoted'", "'quoted'"),
        ("O'Hara", "O'Hara"),
    ],
)
def test_apostrophes_that_guard_a_name_are_taken_off(tmp_path, cell, name):
    """And no others."""
    (vote,) = read_votes([csv_file(tmp_path, f'i1,a,,,,"{cell}",1')], KEY)
    assert vote.voter == name


def test_votes_of_former_pages_are_read(tmp_path):
    """Left was A and right was B, in votes and in keys."""
    path = csv_file(tmp_path, "i1,left,right,,,Ann,1")
    assert read_votes([path], KEY) == (Vote("i1", "a", "b", voter="Ann", seconds=1.0),)
    items = {"i1": {"prompt_id": "p1", "left": "base", "right": "tuned"}}
    former = {"format": "side-by-side vote key 1", "baseline": "base", "contender": "tuned", "items": items}
    (tmp_path / "key.json").write_text(json.dumps(former))
    assert read_key(tmp_path / "key.json").items == {"i1": KeyItem("p1", "base", "tuned")}


def test_votes_are_checked_before_anything_is_loaded(tmp_path):
    """Form always; whether they are on this run's page, if an earlier run left its key."""
    path = csv_file(tmp_path, "i9,a,,,,Ann,1")
    check_votes([], tmp_path)
    check_votes([path], tmp_path)
    write_key(tmp_path / "vote_key.json", KEY)
    with pytest.raises(EvaluationError, match="vote on this run"):
        check_votes([path], tmp_path)
    with pytest.raises(EvaluationError, match="a file that exists"):
        check_votes([tmp_path / "none.csv"], tmp_path)


def test_counting_needs_files():
    """Without any there is nothing to count."""
    assert count_votes([], KEY) is None


@pytest.mark.parametrize(("cut", "warned"), [(0, False), (1, False), (2, True), (8, True)])
def test_many_cut_pairs_are_said_before_people_vote(cut, warned):
    """From a quarter of eight pairs on."""
    comparison = plain_comparison(8)
    names = [prompt.id for prompt in comparison.prompts[:cut]]
    ends = {True: "length", False: "eos"}
    answers = tuple(replace(a, finish_reason=ends[a.prompt_id in names]) for a in comparison.answers)
    said = warn_of_cut_pairs(look_over(replace(comparison, answers=answers)))
    assert said.startswith(f"In {cut} of 8 pairs an answer was cut") is warned


CAPTURE = """
window.saved = []; window.confirm = function () { return true; };
URL.createObjectURL = function (blob) { window.blob = blob; return '#'; };
window.Blob = function (parts) { window.saved.push(parts.join('')); };
HTMLAnchorElement.prototype.click = function () { window.file = this.download; };
"""
CAST = """
var find = document.getElementById.bind(document);
function press(key) { find('prompt').dispatchEvent(new KeyboardEvent('keydown', {key: key, bubbles: true})); }
function tick(name, value) { document.querySelector('[name=' + name + '][value=' + value + ']').click(); }
find('voter').value = '=Zoë, "B"'; find('go').click();
var seen = [], wide = 0, wanted = ['1', '2', '3', '4', 'a', 'B'];
for (var n = 0; !find('vote').hidden && n < 99; n++) {
  seen.push([find('prompt').textContent, find('a').textContent, find('b').textContent]);
  wide = Math.max(wide, document.documentElement.scrollWidth);
  if (n === 1) { find('back').click(); find('next').click(); tick('on_topic', 'both'); tick('structure', 'neither'); }
  press(wanted[n % 6]);
}
find('save').click();
return {seen: seen, wide: wide, csv: window.saved[0], file: window.file, area: find('csv').value,
  pwned: window.pwned || null, title: document.title, summary: find('summary').textContent};
"""


@needs_chromium
def test_page_exports_votes_that_are_read(tmp_path):
    """A script votes by keys through all pairs, goes back once, and saves; the CSV reads back as what was pressed."""
    items, key = blind_items(plain_comparison(6), 3)
    page = write_vote_page(tmp_path / "vote.html", items, "Which?").read_text(encoding="utf-8")
    found = run_in_page(page, CAST, tmp_path / "run", keep_policy=True, before=CAPTURE)
    assert found["summary"] == "8 of 8 pairs voted on."
    assert re.fullmatch(r"votes-zo-b-[a-z0-9]{1,4}\.csv", found["file"])  # two voters of one name, two files
    assert found["seen"] == [[item.prompt, item.a, item.b] for item in items]
    path = tmp_path / "votes.csv"
    path.write_text(found["csv"], encoding="utf-8", newline="")
    votes = read_votes([path], key)
    assert [vote.item_id for vote in votes] == [item.id for item in items]
    assert [vote.choice for vote in votes] == ["a", "b", "tie", "both_bad", "a", "b", "a", "b"]
    assert [getattr(votes[1], name) for name in CRITERIA] == ["", "both", "neither"]
    assert {vote.voter for vote in votes} == {'=Zoë, "B"'}
    assert found["csv"] == "\ufeff" + found["area"].replace("\n", "\r\n")


@needs_chromium
def test_hostile_page_is_harmless(tmp_path):
    """With hostile answers and no policy, nothing runs, no pair is wider than a phone, and every text is shown."""
    items, _ = blind_items(hostile_comparison(), 3, repeats=0)
    page = write_vote_page(tmp_path / "vote.html", items, "Which?").read_text(encoding="utf-8")
    found = run_in_page(page, CAST, tmp_path / "run", before=CAPTURE)
    assert (found["pwned"], found["title"], found["wide"]) == (None, "Which?", 390)
    shown = {text for pair in found["seen"] for text in pair[1:]}
    assert shown == {visible(text) for text in HOSTILE.values() if text.strip()} | {"This answer is empty."}


@needs_chromium
def test_votes_survive_a_closed_page(tmp_path):
    """Votes are kept as they are cast: a page opened with saved votes goes on where the voter left."""
    items, _ = blind_items(plain_comparison(3), 3, repeats=0)
    page = write_vote_page(tmp_path / "vote.html", items, "Which?").read_text(encoding="utf-8")
    name = data_of(page)["page"]
    votes = {items[0].id: {"choice": "a", "concrete": "", "on_topic": "", "structure": "", "seconds": 1}}
    saved = json.dumps({"voter": "Ann", "place": 1, "votes": votes})
    before = f"try{{localStorage.setItem('votes-{name}',{json.dumps(saved)})}}catch(e){{}}"
    script = f"""document.getElementById('go').click();
        var now = JSON.parse(localStorage.getItem('votes-{name}'));
        return [document.getElementById('voter').value, document.getElementById('count').textContent, now.place];"""
    assert run_in_page(page, script, tmp_path / "run", keep_policy=True, before=before) == ["Ann", "Pair 2 of 3", 1]


@needs_chromium
def test_page_works_without_storage(tmp_path):
    """Where storage is forbidden the page still takes votes."""
    items, key = blind_items(plain_comparison(2), 3, repeats=0)
    page = write_vote_page(tmp_path / "vote.html", items, "Which?").read_text(encoding="utf-8")
    deny = "Object.defineProperty(window,'localStorage',{get:function(){throw new Error('denied')}});"
    found = run_in_page(page, CAST, tmp_path / "run", keep_policy=True, before=CAPTURE + deny)
    (tmp_path / "votes.csv").write_text(found["csv"], encoding="utf-8", newline="")
    assert [vote.choice for vote in read_votes([tmp_path / "votes.csv"], key)] == ["a", "b"]


def test_a_class_is_asked_to_judge_24_pairs_at_most(tmp_path):
    """Of 40 answered prompts the 10 without a reference are all voted on, and the first 14 of the others."""
    comparison = plain_comparison(40)
    prompts = tuple(
        replace(prompt, reference=None if place % 4 == 0 else "Good.")
        for place, prompt in enumerate(comparison.prompts)
    )
    comparison = replace(comparison, prompts=prompts)
    items, key = prepare_vote(RunDirectory(tmp_path), comparison, look_over(comparison))
    asked = Counter(entry.prompt_id for entry in key.items.values())
    free = [prompt.id for prompt in prompts if prompt.reference is None]
    others = [prompt.id for prompt in prompts if prompt.reference]
    assert len(items) == 26
    assert set(asked) == {*free, *others[:14]}
    assert sorted(asked.values()) == [1] * 22 + [2] * 2
    assert (tmp_path / "vote.html").is_file()
    assert read_key(tmp_path / "vote_key.json") == key
