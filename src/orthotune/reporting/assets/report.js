"use strict";
(() => {
  // Okabe and Ito's colours, darker on white and lighter on black; a ninth row has the first colour and another mark.
  const PALETTE = {
    light: ["#0072b2", "#c44e00", "#00805e", "#b5538c", "#a87400", "#5b5f66", "#7a5cc2", "#2b8fc9"],
    dark: ["#4da3e0", "#ff8a47", "#2dc59a", "#e793c2", "#f0b93a", "#b4bac2", "#b39df5", "#8fd0ff"],
  };
  const DASHES = ["solid", "dash", "dot", "dashdot"];
  const MARKS = ["circle", "square", "diamond", "triangle-up"];
  const SHAPES = [
    '<circle cx="7" cy="7" r="5"/>', '<rect x="2.5" y="2.5" width="9" height="9"/>',
    '<path d="M7 1l6 6-6 6-6-6z"/>', '<path d="M7 1.5l6 11H1z"/>',
  ];
  const BANDS = 6; // methods with bands in one plot: of more, only the lines can be told apart
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const print = matchMedia("print");
  const narrow = matchMedia("(max-width: 760px)");
  const place = new Map(DATA.methods.map((name, i) => [name, i]));
  const hidden = new Set();
  let printing = false;

  const theme = () => (printing ? "light" : root.dataset.theme || (dark.matches ? "dark" : "light"));
  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const look = (i) => {
    const colours = PALETTE[theme()], n = colours.length, turn = Math.floor(i / n) % 4;
    return { colour: colours[i % n], dash: DASHES[turn], mark: MARKS[turn], shape: SHAPES[turn] };
  };
  const fade = (colour, share) => colour + Math.round(255 * share).toString(16).padStart(2, "0");


  function styled(trace, i) {
    const role = trace.meta.role, seen = place.has(trace.meta.method) ? place.get(trace.meta.method) : i;
    const { colour, dash, mark } = look(role === "series" ? i : seen);
    const own = structuredClone(trace);
    if (role === "band") own.fillcolor = fade(colour, 0.16);
    if (role === "line" || role === "series") {
      own.line = { width: 2, color: colour, dash };
      own.marker = { size: 6, color: colour, symbol: mark };
      if (own.x.length > 40 && role === "line") own.mode = "lines";
    }
    if (role === "front") own.line = { ...own.line, color: css("--muted"), width: 1.5, dash: "dot" };
    if (role === "point" || role === "best") {
      own.marker = { size: role === "best" ? 12 : 9, color: colour, symbol: mark, opacity: 0.9,
        line: { width: role === "best" ? 2 : 0, color: css("--ink") } };
      own.textfont = { color: css("--ink"), size: 12 };
    }
    if (role === "mean") own.marker = { symbol: "line-ns-open", size: 18, color: colour, line: { width: 3, color: colour } };
    if (own.error_y) own.error_y.color = fade(colour, 0.6);
    return own;
  }

  function chosen(panel) {
    const values = {};
    for (const select of document.querySelectorAll(`select[data-panel="${panel.key}"]`)) values[select.dataset.choice] = select.value;
    return values;
  }

  const matches = (trace, values) => Object.entries(values).every(([k, v]) => !(k in trace.meta.shown) || trace.meta.shown[k] === v);

  // Options that lead to no trace with the other choices as they are, are disabled, and never stay chosen.
  function offer(panel) {
    for (const select of document.querySelectorAll(`select[data-panel="${panel.key}"]`)) {
      const others = chosen(panel);
      delete others[select.dataset.choice];
      const possible = new Set(panel.traces.filter((t) => matches(t, others)).map((t) => t.meta.shown[select.dataset.choice]));
      for (const option of select.options) option.disabled = !possible.has(option.value);
      if (select.selectedOptions[0]?.disabled) select.value = [...select.options].find((o) => !o.disabled)?.value ?? select.value;
    }
  }

  function layoutOf(panel, values) {
    const ink = css("--ink"), line = css("--line");
    const merged = { ...panel.layout };
    for (const [name, value] of Object.entries(values)) {
      for (const [key, patch] of Object.entries(panel.axes[`${name}=${value}`] || {})) merged[key] = { ...merged[key], ...patch };
    }
    const axis = (own) => ({ gridcolor: line, zerolinecolor: line, linecolor: line, tickcolor: line, automargin: true, ...own,
      title: { standoff: 10, ...(own?.title || {}) } });
    return {
      ...merged, xaxis: axis(merged.xaxis), yaxis: axis(merged.yaxis),
      height: merged.height || (printing ? 270 : narrow.matches ? 320 : 400),
      width: printing ? 650 : undefined, autosize: !printing,
      margin: { l: 48, r: 16, t: 12, b: 48 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: ink },
      hoverlabel: { bgcolor: css("--raised"), bordercolor: line, font: { color: ink } },
      dragmode: matchMedia("(pointer: coarse)").matches || narrow.matches ? false : "zoom",
      showlegend: panel.legend, legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
    };
  }

  function draw(panel) {
    offer(panel);
    const values = chosen(panel);
    const shown = panel.traces.filter((trace) => matches(trace, values) && !hidden.has(trace.meta.method));
    const crowded = new Set(shown.map((trace) => trace.meta.method)).size > BANDS;
    const traces = shown
      .filter((trace) => !(crowded && trace.meta.role === "band"))
      .map((trace, i) => styled(trace, i));
    return Plotly.react(`plot-${panel.key}`, traces, layoutOf(panel, values), {
      responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
      displayModeBar: narrow.matches ? false : "hover", plotlyServerURL: "",
    });
  }

  function swatch(name) {
    const { colour, shape } = look(place.get(name));
    const own = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    own.setAttribute("viewBox", "0 0 14 14");
    own.setAttribute("class", "swatch");
    own.setAttribute("aria-hidden", "true");
    own.innerHTML = shape;
    own.style.fill = colour;
    return own;
  }

  function redraw() {
    for (const old of document.querySelectorAll(".swatch")) old.replaceWith(swatch(old.parentElement.dataset.swatch));
    return Promise.all(DATA.panels.map(draw));
  }

  function chips() {
    const strip = document.getElementById("chips");
    if (!strip) return;
    const button = (text, press) => {
      const own = document.createElement("button");
      own.type = "button";
      own.textContent = text;
      own.addEventListener("click", press);
      strip.append(own);
      return own;
    };
    const show = () => {
      for (const chip of strip.querySelectorAll("[data-swatch]")) chip.setAttribute("aria-pressed", String(!hidden.has(chip.dataset.swatch)));
      all.textContent = hidden.size ? "All" : "None";
      DATA.panels.filter((panel) => !panel.legend).forEach(draw);
    };
    const all = button("None", () => {
      if (hidden.size) hidden.clear();
      else DATA.methods.forEach((name) => hidden.add(name));
      show();
    });
    all.className = "all";
    all.title = "Show all or no methods in the plots; a double click on a method shows it alone";
    for (const name of DATA.methods) {
      const chip = button(name, () => {
        if (hidden.has(name)) hidden.delete(name);
        else hidden.add(name);
        show();
      });
      chip.addEventListener("dblclick", () => {
        hidden.clear();
        DATA.methods.filter((other) => other !== name).forEach((other) => hidden.add(other));
        show();
      });
      chip.dataset.swatch = name;
      chip.setAttribute("aria-pressed", "true");
      chip.prepend(swatch(name));
    }
  }

  function table() {
    const found = document.querySelector("#overview table");
    if (!found) return;
    const bodies = [...found.tBodies];
    for (const body of bodies) {
      const head = body.querySelector("th");
      const name = body.rows[0].dataset.name;
      if (!place.has(name)) continue;
      head.dataset.swatch = name;
      head.prepend(swatch(name));
    }
    const heads = [...found.tHead.rows[found.tHead.rows.length - 1].cells];
    heads.forEach((head, column) => {
      const press = document.createElement("button");
      press.type = "button";
      press.append(...head.childNodes);
      head.append(press);
      head.setAttribute("aria-sort", "none");
      press.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "none" ? column > 0 && head.className !== "cost" : head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const value = (body) => {
          const cell = body.rows[0].cells[column];
          return column ? parseFloat(cell.dataset.value ?? "NaN") : body.rows[0].dataset.name;
        };
        const compare = (a, b) => {
          const x = value(a), y = value(b);
          if (!column) return (down ? -1 : 1) * x.localeCompare(y);
          if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
          return (down ? -1 : 1) * (x - y);
        };
        found.append(...[...bodies].sort(compare));
      });
    });
    const filter = document.getElementById("filter");
    filter.parentElement.hidden = bodies.length < 5;
    filter.addEventListener("input", () => {
      const wanted = filter.value.trim().toLowerCase();
      for (const body of bodies) body.hidden = !body.rows[0].dataset.name.toLowerCase().includes(wanted);
    });
  }

  function themes() {
    const button = document.getElementById("theme");
    const say = () => { button.textContent = theme() === "dark" ? "Light" : "Dark"; };
    button.hidden = false;
    button.addEventListener("click", () => {
      root.dataset.theme = theme() === "dark" ? "light" : "dark";
      say();
      redraw();
    });
    dark.addEventListener("change", () => { say(); redraw(); });
    say();
  }

  // On paper: light, and as wide as the page.
  function onPaper(now) {
    if (printing === now) return;
    printing = now;
    redraw();
  }

  table();
  chips();
  themes();
  for (const select of document.querySelectorAll("select[data-panel]")) {
    select.addEventListener("change", () => draw(DATA.panels.find((panel) => panel.key === select.dataset.panel)));
  }
  print.addEventListener("change", (event) => onPaper(event.matches));
  addEventListener("beforeprint", () => onPaper(true));
  addEventListener("afterprint", () => onPaper(false));
  narrow.addEventListener("change", redraw);
  redraw().then(() => { root.dataset.drawn = "true"; });
})();
