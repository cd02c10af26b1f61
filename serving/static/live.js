"use strict";
// The page: columns of arms, their answers as they come, and what is shown of one token. Nothing a model writes becomes markup.
(() => {
  const { bars, map, node, number, percent, tint, tip, tradeOff, untip, visible } = show;
  const $ = (id) => document.getElementById(id);
  const MOST = 4, KEPT = 200;
  const SCOPES = ["prompt-last", "prompt", "generated", "all"];
  const KEYS = { strength: (v) => Number.isFinite(v) && Math.abs(v) <= 100, layer: (v) => Number.isInteger(v) && v >= 0, category: (v) => typeof v === "string", scope: (v) => SCOPES.includes(v), gate: (v) => typeof v === "string" };
  let run = null, columns = [], under = null, token = "", turns = 0, rows = [];

  function say(text) { $("said").textContent = text; }
  function trouble(text) { $("trouble").textContent = text || ""; $("trouble").hidden = !text; }

  async function asked(path, options = {}) {
    const headers = { "content-type": "application/json", ...(token ? { authorization: "Bearer " + token } : {}) };
    const response = await fetch(path, { ...options, headers });
    if (response.ok) { return response; }
    const told = await response.json().catch(() => null);
    if (response.status === 401) { $("key").hidden = false; $("token").focus(); }
    throw new Error(told && told.error ? told.error.message : "the server says " + response.status);
  }

  // Columns
  const base = (column) => run.arms.find((arm) => arm.name === column.arm) || run.arms[0];
  const changed = (column) => Object.keys(KEYS).filter((key) => column[key] !== undefined && column[key] !== base(column)[key]);

  function fresh(arm) { return { arm, messages: [], answers: [] }; }

  function choose(labelled, options, value, chosen) {
    const select = node("select");
    for (const one of options) { const made = node("option", "", visible(one)); made.value = one; select.append(made); }
    select.value = value;
    select.addEventListener("change", () => chosen(select.value));
    const label = node("label", "", labelled);
    label.append(select);
    return label;
  }

  function slide(labelled, least, most, step, value, chosen) {
    const label = node("label", "", labelled), box = node("span", "slide"), input = node("input"), output = node("output");
    Object.assign(input, { type: "range", min: least, max: most, step, value });
    output.textContent = step < 1 ? number(value) : value;
    input.addEventListener("input", () => { output.textContent = step < 1 ? number(Number(input.value)) : input.value; chosen(Number(input.value)); });
    box.append(input, output);
    label.append(box);
    return label;
  }

  function controls() {
    $("columns").replaceChildren(...columns.map((column, at) => {
      const box = node("fieldset", "column"), arm = base(column);
      const letter = "ABCD"[at];
      box.append(node("legend", "", letter));
      box.append(choose("Arm", run.arms.map((one) => one.name), arm.name, (name) => {
        for (const key of Object.keys(KEYS)) { delete column[key]; }
        column.arm = name;
        controls();
      }));
      const set = (key) => (value) => { column[key] = value; settings(); };
      const now = (key) => (column[key] === undefined ? arm[key] : column[key]);
      if (arm.steers) {
        const most = Math.max(1, Math.abs(now("strength")));
        box.append(slide("Strength", -most, most, 0.05, now("strength"), set("strength")));
        if (run.layers.length > 1) { box.append(slide("Layer", run.layers[0], run.layers[run.layers.length - 1], 1, now("layer"), set("layer"))); }
        if (arm.kind !== "routed" && arm.kind !== "lowrank") { box.append(choose("Category", ["mean", ...run.categories], now("category"), set("category"))); }
        box.append(choose("Scope", SCOPES, now("scope"), set("scope")));
      }
      if (arm.gated && run.gates.length) { box.append(choose("Gate", run.gates, now("gate"), set("gate"))); }
      if (columns.length > 1) {
        const gone = node("button", "", "Remove " + letter);
        gone.type = "button";
        gone.addEventListener("click", () => { columns.splice(at, 1); controls(); answers(); });
        box.append(gone);
      }
      return box;
    }));
    $("add").disabled = columns.length >= MOST;
    settings();
  }

  function settings() {
    const kept = { columns: columns.map((column) => ({ arm: column.arm, ...Object.fromEntries(changed(column).map((key) => [key, column[key]])) })), prompt: $("prompt").value, tokens: Number($("tokens").value), temperature: Number($("temperature").value), colour: $("colour").value };
    history.replaceState(null, "", "#" + encodeURIComponent(JSON.stringify(kept)));
    if (run.trade_off.length) {
      const shown = columns.map((column, at) => ({ arm: column.arm, letter: "ABCD"[at], measured: !changed(column).length && run.trade_off.some((one) => one.arm === column.arm) }));
      tradeOff($("trade"), run.trade_off, shown);
      const odd = shown.filter((one) => !one.measured).map((one) => one.letter);
      $("trade-text").textContent = "By the scorer " + run.trade_off[0].scorer + ", with 95 % intervals; filled: the settings above."
        + (odd.length ? " Not measured in this run as " + (odd.length > 1 ? "they stand" : "it stands") + ": " + odd.join(", ") + "." : "");
    } else { $("trade-text").textContent = "Nothing yet: generate and evaluate measure rates, and this page then shows them."; }
  }

  // A link is anybody's: only what is known is taken from it.
  function taken() {
    const text = location.hash.slice(1);
    const bearer = /^token=([\w~.+/=-]{1,200})$/.exec(text);
    if (bearer) { token = bearer[1]; sessionStorage.setItem("token", token); history.replaceState(null, "", location.pathname); return null; }
    try { return JSON.parse(decodeURIComponent(text)); } catch { return null; }
  }

  function begin(link) {
    const known = run.arms.map((arm) => arm.name);
    const told = link && Array.isArray(link.columns) ? link.columns.filter((one) => one && known.includes(one.arm)).slice(0, MOST) : [];
    columns = told.map((one) => ({ ...fresh(one.arm), ...Object.fromEntries(Object.entries(KEYS).filter(([key, fits]) => fits(one[key])).map(([key]) => [key, one[key]])) }));
    if (!columns.length) {
      const better = ["chosen", "gated", "fixed"].map((kind) => run.arms.find((arm) => arm.kind === kind || arm.name === kind)).find(Boolean) || run.arms[run.arms.length - 1];
      columns = [...new Set([(run.arms.find((arm) => arm.kind === "baseline") || run.arms[0]).name, better.name])].map(fresh);
    }
    if (link && typeof link.prompt === "string") { $("prompt").value = link.prompt.slice(0, 100000); }
    if (link && link.tokens >= 1 && link.tokens <= 4096) { $("tokens").value = link.tokens; }
    if (link && link.temperature >= 0 && link.temperature <= 2) { $("temperature").value = link.temperature; }
    $("colour").replaceChildren(...["nothing", ...run.categories].map((name) => { const made = node("option", "", visible(name)); made.value = name; return made; }));
    $("colour").value = link && run.categories.includes(link.colour) ? link.colour : run.projects ? run.categories[0] : "nothing";
    $("colour").disabled = $("depth").disabled = !run.projects;
    const near = run.layers.includes(run.layer) ? run.layer : run.layers[0];
    Object.assign($("depth"), { min: 0, max: run.layers.length - 1, step: 1, value: run.layers.indexOf(near) });
    depth();
    controls();
  }

  // Answers
  function answers() {
    $("answers").replaceChildren(...columns.map((column, at) => {
      const box = node("div", "column");
      box.append(node("h3", "", "ABCD"[at] + "  " + visible(column.arm)));
      column.answers.forEach((answer) => box.append(answer.box));
      if (!column.answers.length) { box.append(node("p", "note", "Answers appear here.")); }
      return box;
    }));
    maps();
  }

  function opened(answer) {
    const told = answer.steering, badges = answer.badges;
    badges.replaceChildren();
    const badge = (text, kind = "plain") => badges.append(node("span", "badge " + kind, visible(text)));
    if (told.control_token) { badge("[" + told.control_token + "]", told.refusal_token ? "refuse" : "comply"); }
    if (told.vector && told.strength) { badge(told.vector + " × " + number(told.strength) + (told.layer === null ? "" : " at layer " + told.layer), "other"); } else if (told.strength === 0 || told.kind === "baseline") { badge("unsteered"); }
    if (told.gate) { badge("gate " + told.gate.name + ": " + number(told.gate.score) + (told.gate.harmful ? ", harmful" : ", benign"), told.gate.harmful ? "refuse" : "comply"); }
    if (told.refusal_probability !== null) { badge("P(refusal token) " + percent(told.refusal_probability)); }
    if (answer.finish) { badge(answer.finish === "stop" ? answer.tokens.length + " tokens" : answer.finish === "length" ? "cut at " + answer.tokens.length + " tokens" : answer.finish); }
  }

  function turn(prompt) {
    const answer = { tokens: [], prompt: [], steering: null, finish: "", box: node("div", "turn"), badges: node("div", "badges"), reply: node("div", "reply"), here: -1 };
    answer.reply.tabIndex = 0;
    answer.reply.dir = "auto";
    answer.reply.setAttribute("role", "group");
    answer.reply.setAttribute("aria-label", "Answer; arrow keys walk through its tokens");
    answer.box.append(node("div", "said", visible(prompt)), answer.badges, answer.reply);
    answer.reply.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (step && answer.tokens.length) { event.preventDefault(); closer(answer, Math.max(0, Math.min(answer.tokens.length - 1, answer.here + step))); }
    });
    answer.reply.addEventListener("pointerover", (event) => {
      const at = answer.tokens.findIndex((one) => one.span === event.target);
      if (at >= 0) { closer(answer, at); tip(event, hover(answer, answer.tokens[at])); }
    });
    answer.reply.addEventListener("pointerleave", untip);
    return answer;
  }

  function hover(answer, one) {
    const at = Number($("depth").value);
    const parts = one.projections ? run.categories.map((name, c) => visible(name) + " " + number(one.projections[at][c])) : [];
    if (answer.steering && answer.steering.gate) { parts.push("gate " + number(answer.steering.gate.score)); }
    return parts.join("; ") || "no projections";
  }

  function closer(answer, at) {
    if (answer.here >= 0 && answer.tokens[answer.here]) { answer.tokens[answer.here].span.classList.remove("here"); }
    answer.here = at;
    const one = answer.tokens[at], depthAt = Number($("depth").value);
    one.span.classList.add("here");
    $("closer").hidden = false;
    if (one.projections) {
      const values = one.projections[depthAt];
      bars($("one"), "Projections of " + JSON.stringify(visible(one.text)) + " at layer " + run.layers[depthAt], run.categories.map((name, c) => [name, values[c]]), number, Math.max(...values.map(Math.abs)));
    }
    if (one.top) { bars($("next"), "Most probable tokens there", one.top.map((entry) => [JSON.stringify(entry.token), Math.exp(entry.logprob)]), percent, 1); }
  }

  function paint() {
    const at = Number($("depth").value), c = run.categories.indexOf($("colour").value);
    for (const answer of columns.flatMap((column) => column.answers)) {
      answer.tokens.forEach((one) => { one.span.style.background = c < 0 || !one.projections ? "" : tint(one.projections[at][c] / scale(at, c)); });
    }
  }

  // One scale for all columns, so that equal colours are equal projections.
  function scale(at, c) {
    let most = 1e-9;
    for (const answer of columns.flatMap((column) => column.answers)) {
      for (const one of answer.tokens) { if (one.projections) { most = Math.max(most, Math.abs(one.projections[at][c])); } }
    }
    return most;
  }

  function maps() {
    const c = Math.max(0, run.categories.indexOf($("colour").value));
    const shown = columns.map((column, at) => {
      const last = column.answers[column.answers.length - 1];
      const tokens = last ? [...last.prompt, ...last.tokens.filter((one) => one.projections)].slice(-KEPT) : [];
      return tokens.length ? map("ABCD"[at] + ": " + visible(run.categories[c]), tokens, c, run.layers, run.layers[Number($("depth").value)]) : null;
    }).filter(Boolean);
    $("depths").hidden = !shown.length;
    $("maps").replaceChildren(...shown);
  }

  function depth() { $("depth-now").textContent = run.layers[Number($("depth").value)]; }

  // Asking
  function body(column) {
    const own = Object.fromEntries(changed(column).map((key) => [key, column[key]]));
    const more = run.projects ? { projections: true, logprobs: true, top_logprobs: 6, temperature: Number($("temperature").value) } : {};
    return JSON.stringify({ model: column.arm, messages: column.messages, stream: true, max_tokens: Number($("tokens").value), ...own, ...more });
  }

  async function answerOf(column, answer, signal) {
    const response = await asked("/v1/chat/completions", { method: "POST", body: body(column), signal });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) { break; }
      const lines = (rest + value).split("\n\n");
      rest = lines.pop();
      for (const line of lines) {
        const text = line.replace(/^data: /, "");
        if (text !== "[DONE]") { heard(answer, JSON.parse(text)); }
      }
      paint();
    }
  }

  function heard(answer, told) {
    if (told.error) { throw new Error(told.error.message); }
    for (const choice of told.choices) {
      if (choice.steering) {
        answer.steering = choice.steering;
        answer.prompt = choice.steering.prompt || answer.prompt;
        if (choice.finish_reason) { answer.finish = choice.finish_reason; }
        opened(answer);
      }
      const text = (choice.delta && choice.delta.content) || "", projections = choice.projections && choice.projections[0];
      if (text || projections) {
        const entry = choice.logprobs && choice.logprobs.content[0];
        const span = node("span", "", visible(text));
        answer.tokens.push({ text: text || (entry ? entry.token : ""), said: text, span, projections, top: entry && entry.top_logprobs, made: true });
        answer.reply.append(span);
      }
    }
  }

  async function ask(event) {
    event.preventDefault();
    const prompt = $("prompt").value;
    if (!prompt.trim() || under) { return; }
    trouble("");
    under = new AbortController();
    turns += 1;
    $("send").disabled = $("add").disabled = true;
    $("halt").disabled = false;
    say("Answering …");
    const signal = under.signal;
    const each = columns.map(async (column) => {
      const answer = turn(prompt);
      column.messages.push({ role: "user", content: prompt });
      column.answers.push(answer);
      rows.push({ messages: [...column.messages], label: $("label").value });
      answers();
      try { await answerOf(column, answer, signal); } catch (error) {
        answer.finish = signal.aborted ? "stopped" : "failed";
        if (answer.steering) { opened(answer); }
        if (!signal.aborted) { trouble(visible(error.message)); }
      }
      column.messages.push({ role: "assistant", content: answer.tokens.map((one) => one.said).join("") });
    });
    await Promise.all(each);
    under = null;
    maps();
    $("send").disabled = false;
    $("add").disabled = columns.length >= MOST;
    $("halt").disabled = true;
    $("anew").disabled = $("save").disabled = false;
    say("");
  }

  // Rows as --data takes them: a conversation up to the prompt, each once.
  function saved() {
    const lines = [...new Set(rows.map((row) => JSON.stringify(row)))].map((line, at) => {
      const row = JSON.parse(line);
      return JSON.stringify({ id: "live-" + at, messages: row.messages, ...(row.label ? { label: row.label } : {}) });
    });
    const link = node("a");
    link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "application/jsonl" }));
    link.download = "live.jsonl";
    link.click();
    URL.revokeObjectURL(link.href);
    say(lines.length + " rows in live.jsonl: generate --data live.jsonl answers them again");
  }

  async function start() {
    const link = taken();
    token = token || sessionStorage.getItem("token") || "";
    try {
      run = await (await asked("/v1/run")).json();
    } catch (error) { trouble(visible(error.message)); return; }
    $("key").hidden = true;
    trouble("");
    $("about").textContent = visible(run.model + ", run " + run.run + ": " + run.layers.length + " layers with vectors of " + run.categories.length + " categories" + (run.gates.length ? ", gates " + run.gates.join(", ") : ", no gate"));
    begin(link);
    answers();
  }

  $("ask").addEventListener("submit", ask);
  $("prompt").addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { ask(event); } });
  for (const name of ["prompt", "tokens", "temperature"]) { $(name).addEventListener("change", () => run && settings()); }
  $("colour").addEventListener("change", () => { settings(); paint(); maps(); });
  $("depth").addEventListener("input", () => { depth(); paint(); maps(); });
  $("add").addEventListener("click", () => { const last = columns[columns.length - 1]; columns.push({ ...last, messages: [], answers: [] }); controls(); answers(); });
  $("halt").addEventListener("click", () => under && under.abort());
  $("anew").addEventListener("click", () => { for (const column of columns) { column.messages = []; column.answers = []; } $("closer").hidden = true; answers(); $("anew").disabled = true; $("prompt").focus(); });
  $("share").addEventListener("click", async () => { settings(); try { await navigator.clipboard.writeText(location.href); say("The link is copied."); } catch { say("The address bar has the link."); } });
  $("save").addEventListener("click", saved);
  addEventListener("resize", () => run && settings());
  $("key").addEventListener("submit", (event) => { event.preventDefault(); token = $("token").value; sessionStorage.setItem("token", token); start(); });
  start();
})();
