"use strict";
// Draws every chart of the page, one after another, and shows a tooltip made of text only.
(() => {
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  document.body.append(tip);

  function tooltip(_handler, event, _item, value) {
    if (value === null || value === undefined || value === "") { tip.hidden = true; return; }
    const rows = typeof value === "object" ? Object.entries(value) : [["", value]];
    tip.replaceChildren(...rows.map(([key, shown]) => {
      const line = document.createElement("div");
      line.textContent = key ? key + ": " + String(shown) : String(shown);
      return line;
    }));
    tip.hidden = false;
    const width = document.documentElement.clientWidth;
    tip.style.left = Math.max(4, Math.min(event.clientX + 12, width - tip.offsetWidth - 8)) + "px";
    tip.style.top = event.clientY + 14 + "px";
  }

  // What has to give way on a narrow screen.
  function fitted(spec, width) {
    const config = structuredClone(spec.config || {});
    config.legend = { ...config.legend, columns: Math.max(1, Math.floor((width - 40) / (spec.usermeta?.legend ?? 190))), labelLimit: Math.max(140, width - 60) };
    if (width < 480) { config.axis = { ...config.axis, labelLimit: 140 }; }
    return { ...spec, config };
  }

  async function draw(script) {
    const place = document.getElementById(script.dataset.chart);
    try {
      const spec = fitted(JSON.parse(script.textContent), place.clientWidth);
      await vegaEmbed(place, spec, {
        actions: false, ast: true, defaultStyle: false, mode: "vega-lite", renderer: "svg", tooltip, logLevel: 1,
      });
    } catch (error) {
      place.textContent = "This chart could not be drawn: " + error;
      place.classList.add("failed");
    }
  }

  async function drawAll() {
    for (const script of document.querySelectorAll("script[data-chart]")) { await draw(script); }
    document.documentElement.dataset.drawn = String(Math.round(performance.now()));
  }
  drawAll();
})();
