"use strict";
// Drawing: texts, colours and charts. Every text reaches the page through textContent.
const show = (() => {
  const LOW = [0, 114, 178], HIGH = [213, 94, 0];  // below zero, above
  const SVG = "http://www.w3.org/2000/svg";

  function node(tag, className, text) {
    const made = document.createElement(tag);
    if (className) { made.className = className; }
    if (text !== undefined) { made.textContent = text; }
    return made;
  }

  function drawn(tag, attributes, text) {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) { made.setAttribute(name, value); }
    if (text !== undefined) { made.textContent = text; }
    return made;
  }

  // As in the report: controls, direction marks and unassigned characters are written out; joiners stay.
  const HIDDEN = /[\p{C}\u2028\u2029]/gu;
  function visible(text) {
    return String(text).replace(HIDDEN, (c) => {
      if (c === "\n" || c === "\t" || c === "\u200c" || c === "\u200d") { return c; }
      const code = c.codePointAt(0).toString(16);
      return code.length > 4 ? "\\u{" + code + "}" : "\\u" + code.padStart(4, "0");
    });
  }

  const number = (value, digits = 2) => (Number.isFinite(value) ? value.toFixed(digits).replace("-", "\u2212") : "–");
  const percent = (value) => (Number.isFinite(value) ? (100 * value).toFixed(1) + " %" : "–");

  // A colour for a share from -1 to 1: the further from 0, the fuller.
  function tint(share, most = 0.62) {
    const bounded = Math.max(-1, Math.min(1, share || 0));
    return "rgba(" + (bounded < 0 ? LOW : HIGH).join(",") + "," + (Math.abs(bounded) * most).toFixed(3) + ")";
  }

  function bars(place, title, rows, shown, largest) {
    place.replaceChildren(node("h3", "", title));
    const box = node("div", "bars");
    for (const [name, value] of rows) {
      const bar = node("i");
      bar.style.width = Math.min(100, 100 * Math.abs(value) / (largest || 1)) + "%";
      bar.style.background = tint(Math.sign(value), 0.9);
      const cell = node("div");
      cell.append(bar);
      box.append(node("b", "", visible(name)), cell, node("span", "", shown(value)));
    }
    place.append(box);
  }

  // One column a token, one row a layer, the last on top.
  function map(name, tokens, category, layers, chosen) {
    const made = node("figure"), cell = 10;
    const values = tokens.map((token) => layers.map((_, at) => token.projections[at][category]));
    const largest = layers.map((_, at) => Math.max(1e-9, ...values.map((one) => Math.abs(one[at]))));
    const canvas = node("canvas", "map");
    canvas.width = Math.max(tokens.length, 1) * cell;
    canvas.height = layers.length * cell;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", name + ": projections of " + tokens.length + " positions at " + layers.length + " layers");
    const pen = canvas.getContext("2d");
    values.forEach((one, x) => one.forEach((value, y) => {
      pen.fillStyle = tint(value / largest[y], 1);
      pen.fillRect(x * cell, (layers.length - 1 - y) * cell, cell, cell);
    }));
    const line = (layers.length - 1 - layers.indexOf(chosen)) * cell;
    pen.strokeStyle = "#7d8590";
    pen.strokeRect(0.5, line + 0.5, canvas.width - 1, cell - 1);
    const first = tokens.findIndex((token) => token.made);
    if (first > 0) {
      pen.fillStyle = "#7d8590";
      pen.fillRect(first * cell - 1, 0, 2, canvas.height);
    }
    canvas.addEventListener("pointermove", (event) => {
      const box = canvas.getBoundingClientRect();
      const x = Math.floor((event.clientX - box.left) / box.width * tokens.length);
      const y = layers.length - 1 - Math.floor((event.clientY - box.top) / box.height * layers.length);
      if (tokens[x] && layers[y] !== undefined) {
        tip(event, "layer " + layers[y] + ", " + JSON.stringify(visible(tokens[x].text)) + ": " + number(values[x][y]));
      }
    });
    canvas.addEventListener("pointerleave", untip);
    made.append(node("h3", "", name), canvas, node("figcaption", "",
      "Layers " + layers[0] + " to " + layers[layers.length - 1] + " upwards, positions from left to right; behind the grey line what was generated. Each layer has its own scale: blue below zero, orange above."));
    return made;
  }

  function tip(event, text) {
    const box = document.getElementById("tip");
    box.textContent = text;
    box.hidden = false;
    const left = Math.min(event.clientX + 12, document.documentElement.clientWidth - box.offsetWidth - 8);
    box.style.left = Math.max(4, left) + "px";
    box.style.top = Math.min(event.clientY + 14, innerHeight - box.offsetHeight - 8) + "px";
  }
  const untip = () => { document.getElementById("tip").hidden = true; };

  // Over-refusal against refusal, an arm a point; those that a column answers with are filled and bear its letter.
  function tradeOff(place, points, columns) {
    const wide = Math.max(300, Math.min(640, place.clientWidth || 640)), high = 340, left = 52, right = 16, top = 12, bottom = 44;
    const most = Math.min(1, Math.ceil(5 * Math.max(0.05, ...points.map((one) => one.benign.high))) / 5);
    const least = Math.floor(5 * Math.min(0.95, ...points.map((one) => one.harmful.low))) / 5;
    const x = (rate) => left + rate / most * (wide - left - right);
    const y = (rate) => top + (1 - rate) / (1 - least) * (high - top - bottom);
    const svg = drawn("svg", { viewBox: "0 0 " + wide + " " + high, role: "img" });
    svg.setAttribute("aria-label", points.map((one) => one.arm + ": over-refusal " + percent(one.benign.rate) + ", refusal " + percent(one.harmful.rate)).join("; "));
    for (let at = 0; at <= 4; at += 1) {
      const across = most * at / 4, up = least + (1 - least) * at / 4;
      svg.append(drawn("line", { x1: x(across), x2: x(across), y1: top, y2: high - bottom, stroke: "currentColor", opacity: 0.12 }),
        drawn("line", { x1: left, x2: wide - right, y1: y(up), y2: y(up), stroke: "currentColor", opacity: 0.12 }),
        drawn("text", { x: x(across), y: high - bottom + 18, "text-anchor": "middle" }, Math.round(100 * across) + "%"),
        drawn("text", { x: left - 8, y: y(up) + 4, "text-anchor": "end" }, Math.round(100 * up) + "%"));
    }
    svg.append(drawn("text", { x: (left + wide - right) / 2, y: high - 6, "text-anchor": "middle" }, "over-refusal: benign prompts refused"),
      drawn("text", { x: 14, y: (top + high - bottom) / 2, "text-anchor": "middle", transform: "rotate(-90 14 " + (top + high - bottom) / 2 + ")" }, "refusal: harmful prompts refused"));
    points.forEach((one) => {
      const letters = columns.filter((column) => column.arm === one.arm && column.measured).map((column) => column.letter).join("");
      const colour = letters ? "#d55e00" : "#7d8590";
      const group = drawn("g", { tabindex: 0, role: "img", "aria-label": one.arm });
      const beyond = x(one.benign.rate) > 0.6 * wide;
      group.append(drawn("line", { x1: x(one.benign.low), x2: x(one.benign.high), y1: y(one.harmful.rate), y2: y(one.harmful.rate), stroke: colour }),
        drawn("line", { x1: x(one.benign.rate), x2: x(one.benign.rate), y1: y(one.harmful.low), y2: y(one.harmful.high), stroke: colour }),
        drawn("circle", { cx: x(one.benign.rate), cy: y(one.harmful.rate), r: letters ? 7 : 5, fill: letters ? colour : "var(--paper)", stroke: colour, "stroke-width": 2 }),
        drawn("text", { x: x(one.benign.rate) + (beyond ? -10 : 10), y: y(one.harmful.rate) - 9, "text-anchor": beyond ? "end" : "start" }, (letters ? letters + "  " : "") + visible(one.arm)),
        drawn("title", {}, visible(one.arm) + ": over-refusal " + percent(one.benign.rate) + " of " + one.benign.n + ", refusal " + percent(one.harmful.rate) + " of " + one.harmful.n));
      svg.append(group);
    });
    place.replaceChildren(svg);
  }

  return { bars, map, node, number, percent, tint, tip, tradeOff, untip, visible };
})();
