"use strict";
// The answers: search, filter, read the baseline and one arm side by side. Only one page of rows is in the document.
// Every text reaches the page through textContent, with characters that show nothing written out.
(() => {
  const PAGE_ROWS = 20;
  const SHORT = 600;         // characters that stand before "show all"
  const LONGEST_DIFF = 600;  // words a side that are compared one by one
  const [RESPONSE, TOKENS, CUT, CONTROL, VECTOR, VERDICTS] = [0, 1, 2, 3, 4, 5];
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("samples-data").textContent);
  const called = data.names || data.arms;
  const baseline = data.arms.findIndex((arm) => arm === "baseline" || arm.startsWith("baseline:"));
  let found = [];
  let page = 0;

  function node(tag, className, text) {
    const made = document.createElement(tag);
    if (className) { made.className = className; }
    if (text !== undefined) { made.textContent = text; }
    return made;
  }

  // As `visible` in wording.py: controls, direction marks and unassigned characters are written out; joiners stay.
  const HIDDEN = /[\p{C}\u2028\u2029]/gu;
  function visible(text) {
    return text.replace(HIDDEN, (c) => {
      if (c === "\n" || c === "\t" || c === "\u200c" || c === "\u200d") { return c; }
      const code = c.codePointAt(0).toString(16);
      return code.length > 4 ? "\\u{" + code + "}" : "\\u" + code.padStart(4, "0");
    });
  }
  const name = (list, at) => (at < 0 ? "–" : visible(String(list[at])));
  const verdictOf = (answer, scorer) => (answer && scorer >= 0 ? data.verdicts[answer[VERDICTS + scorer]] ?? null : null);

  // Words that only one of two texts has: longest common subsequence of what lies between their common ends. The third
  // value says that it has too little in common to mark words in.
  function difference(a, b) {
    const left = a.match(/\s+|[^\s]+/g) || [], right = b.match(/\s+|[^\s]+/g) || [];
    let start = 0;
    while (start < left.length && start < right.length && left[start] === right[start]) { start++; }
    let end = 0;
    while (end < left.length - start && end < right.length - start && left[left.length - 1 - end] === right[right.length - 1 - end]) { end++; }
    const x = left.slice(start, left.length - end), y = right.slice(start, right.length - end);
    const mine = new Array(x.length).fill(true), yours = new Array(y.length).fill(true);
    const short = x.length <= LONGEST_DIFF && y.length <= LONGEST_DIFF;
    // Too little in common, ends included: two different answers, in which scattered matches would say nothing.
    const ends = words(left.slice(0, start)) + words(left.slice(left.length - end));
    const shared = ends + (short ? common(x, y, mine, yours) : 0);
    const other = shared < 0.4 * Math.min(words(left), words(right));
    if (other) { mine.fill(false); yours.fill(false); }
    const parts = (words, marks, size) => words.map((word, at) => [word, at >= start && at < size - end && marks[at - start]]);
    return [parts(left, mine, left.length), parts(right, yours, right.length), Boolean(other)];
  }

  const words = (list) => list.filter((word) => word.trim()).length;

  // Unmarks what both have, and says how many words that is.
  function common(x, y, mine, yours) {
    const wide = y.length + 1, table = new Uint16Array((x.length + 1) * wide);
    for (let i = x.length - 1; i >= 0; i--) {
      for (let j = y.length - 1; j >= 0; j--) {
        table[i * wide + j] = x[i] === y[j] ? table[(i + 1) * wide + j + 1] + 1 : Math.max(table[(i + 1) * wide + j], table[i * wide + j + 1]);
      }
    }
    const pairs = [];
    for (let i = 0, j = 0; i < x.length && j < y.length;) {
      if (x[i] === y[j]) { pairs.push([i++, j++]); }
      else if (table[(i + 1) * wide + j] >= table[i * wide + j + 1]) { i++; } else { j++; }
    }
    for (const [i, j] of pairs) { mine[i] = false; yours[j] = false; }
    return words(pairs.map(([i]) => x[i]));
  }

  // Parts are [text, marked] pairs; runs of the same kind become one element.
  function fill(box, parts, tag, limit) {
    let length = 0, open = null, marked = null;
    for (const [text, mark] of parts) {
      if (length >= limit) { break; }
      const piece = text.slice(0, limit - length);
      length += piece.length;
      if (open === null || mark !== marked) {
        open = mark ? node(tag) : document.createTextNode("");
        box.append(open);
        marked = mark;
      }
      open.textContent += visible(piece);
    }
  }

  function textBox(parts, tag) {
    const outer = node("div"), box = node("div", "answer-text");
    const total = parts.reduce((sum, [text]) => sum + text.length, 0);
    box.dir = "auto";
    fill(box, parts, tag, SHORT);
    outer.append(box);
    if (total > SHORT) {
      const button = node("button", "more", "Show all " + total.toLocaleString("en") + " characters");
      button.type = "button";
      button.setAttribute("aria-expanded", "false");
      button.addEventListener("click", () => {
        const opened = button.getAttribute("aria-expanded") === "true";
        box.replaceChildren();
        fill(box, parts, tag, opened ? SHORT : Infinity);
        button.setAttribute("aria-expanded", String(!opened));
        button.textContent = opened ? "Show all " + total.toLocaleString("en") + " characters" : "Show less";
      });
      outer.append(button);
    }
    if (data.limit !== null && total >= data.limit) { outer.append(node("p", "small", "Cut here; whole in generations.parquet.")); }
    return outer;
  }

  function answerCell(answer, parts, tag, title, other) {
    const cell = node("td");
    cell.dataset.title = title;
    if (!answer) { cell.append(node("span", "small", "no answer in this arm")); return cell; }
    const badges = node("div", "badges");
    data.scorers.forEach((scorer, at) => {
      const verdict = verdictOf(answer, at);
      const known = ["refuse", "comply", "partial", "broken"].includes(verdict) ? verdict : "none";
      if (verdict !== null || at === state().scorer) { badges.append(node("span", "badge " + known, visible(scorer) + ": " + (verdict === null ? "no verdict" : visible(verdict)))); }
    });
    if (answer[CONTROL] !== null) { badges.append(node("span", "badge plain", "[" + visible(answer[CONTROL]) + "]")); }
    if (answer[VECTOR] !== null) { badges.append(node("span", "badge plain", "vector: " + visible(answer[VECTOR]))); }
    if (other) { badges.append(node("span", "badge other", "≠ another answer")); }
    badges.append(node("span", "small", answer[TOKENS] + " tokens" + (answer[CUT] ? ", cut at the limit" : "")));
    cell.append(badges, textBox(parts, tag));
    return cell;
  }

  function rowOf(row, arm) {
    const [set, id, prompt, category, label, fitted, answers] = row;
    const line = node("tr"), first = node("td");
    first.dataset.title = "prompt";
    first.append(textBox([[prompt ?? "–", false]], "mark"));
    const about = node("div", "badges");
    about.append(node("span", "badge plain", name(data.sets, set) + " · " + visible(id)));
    for (const [list, at] of [[data.labels, label], [data.categories, category]]) {
      if (at >= 0) { about.append(node("span", "badge plain", name(list, at))); }
    }
    if (fitted) { about.append(node("span", "badge none", "text used for fitting: not counted")); }
    first.append(about);
    const before = baseline < 0 ? null : answers[baseline], after = answers[arm];
    const [left, right, other] = arm === baseline || !before || !after
      ? [[[before?.[RESPONSE] ?? "", false]], [[after?.[RESPONSE] ?? "", false]]]
      : difference(before[RESPONSE] ?? "", after[RESPONSE] ?? "");
    line.append(first, answerCell(before, left, "del", "baseline"));
    if (arm !== baseline) { line.append(answerCell(after, right, "ins", visible(called[arm]), other)); }
    return line;
  }

  function state() {
    return {
      text: $("f-text").value.trim().toLowerCase(), arm: Number($("f-arm").value), scorer: Number($("f-scorer").value || -1),
      set: $("f-set").value, category: $("f-category").value, label: $("f-label").value,
      verdict: $("f-verdict").value, changed: $("f-changed").value,
    };
  }

  const CHANGES = {
    verdict: (b, a) => b !== null && a !== null && b !== a,
    to: (b, a) => b !== null && b !== "refuse" && a === "refuse",
    from: (b, a) => b === "refuse" && a !== null && a !== "refuse",
    broken: (b, a) => b !== null && b !== "broken" && a === "broken",
  };

  function matches(row, s) {
    const [set, id, prompt, category, label, , answers] = row;
    if (s.set !== "" && set !== Number(s.set)) { return false; }
    if (s.category !== "" && category !== Number(s.category)) { return false; }
    if (s.label !== "" && label !== Number(s.label)) { return false; }
    const before = baseline < 0 ? null : answers[baseline], after = answers[s.arm];
    if (s.verdict !== "" && (verdictOf(after, s.scorer) ?? "none") !== s.verdict) { return false; }
    if (s.changed === "text" && !(before && after && before[RESPONSE] !== after[RESPONSE])) { return false; }
    if (s.changed === "same" && !(before && after && before[RESPONSE] === after[RESPONSE])) { return false; }
    if (CHANGES[s.changed] && !CHANGES[s.changed](verdictOf(before, s.scorer), verdictOf(after, s.scorer))) { return false; }
    if (s.text === "") { return true; }
    return [prompt, id, before?.[RESPONSE], after?.[RESPONSE]].some((text) => text && text.toLowerCase().includes(s.text));
  }

  function show() {
    const s = state(), pages = Math.max(1, Math.ceil(found.length / PAGE_ROWS));
    page = Math.max(0, Math.min(page, pages - 1));
    $("samples-body").replaceChildren(...found.slice(page * PAGE_ROWS, (page + 1) * PAGE_ROWS).map((at) => rowOf(data.rows[at], s.arm)));
    $("h-baseline").textContent = baseline < 0 ? "no baseline" : "baseline";
    $("h-arm").textContent = visible(called[s.arm]);
    $("h-arm").hidden = s.arm === baseline;
    const many = (n) => n.toLocaleString("en");
    $("samples-count").textContent = many(found.length) + " of " + many(data.rows.length) + " prompts. " +
      (s.arm === baseline ? "" : "Struck through: only the baseline says it; underlined: only the arm does.");
    $("p-page").value = String(page + 1);
    $("p-page").max = String(pages);
    $("p-of").textContent = "of " + many(pages);
    $("p-back").disabled = page === 0;
    $("p-next").disabled = page >= pages - 1;
  }

  function search() {
    const s = state();
    found = [];
    data.rows.forEach((row, at) => { if (matches(row, s)) { found.push(at); } });
    page = 0;
    show();
  }

  function options(id, list, first) {
    for (const [at, text] of list.entries()) {
      const option = node("option", "", visible(String(text)).slice(0, 80));
      option.value = String(first === "name" ? text : at);
      $(id).append(option);
    }
    if (list.length < (first === "all" ? 2 : 1)) { $(id).closest("label").hidden = true; }
  }

  function turn(to) {
    page = to;
    show();
    $("samples-count").scrollIntoView({ block: "start" });
  }

  options("f-arm", called);
  options("f-scorer", data.scorers);
  options("f-set", data.sets, "all");
  options("f-category", data.categories, "all");
  options("f-label", data.labels, "all");
  options("f-verdict", [...data.verdicts].sort(), "name");
  $("f-verdict").append(Object.assign(node("option", "", "no verdict"), { value: "none" }));
  if (data.arms.length) { $("f-arm").options[data.first].defaultSelected = true; }
  $("f-arm").value = String(data.first);
  let waiting = 0;
  $("f-text").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(search, 150); });
  $("samples-form").addEventListener("change", (event) => { if (event.target.id !== "f-text") { search(); } });
  $("samples-form").addEventListener("submit", (event) => { event.preventDefault(); search(); });
  $("samples-form").addEventListener("reset", () => setTimeout(search, 0));
  $("p-back").addEventListener("click", () => turn(page - 1));
  $("p-next").addEventListener("click", () => turn(page + 1));
  $("p-page").addEventListener("change", () => turn(Number($("p-page").value) - 1));
  for (const id of ["samples-form", "samples-table", "samples-pager"]) { $(id).hidden = false; }
  search();
})();
