// Charts of lines: of each figure, views to choose from, lines to show or hide, and the values of the point that the
// pointer or the arrow keys are at.
const SVG = make("div", {innerHTML: "<svg></svg>"}).firstChild.namespaceURI; // no address in the page
const draw = (tag, attributes = {}, ...children) => {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
};
const HEIGHT = 320, EDGE = {left: 62, right: 14, top: 10, bottom: 42};
const short = value => value === 0 ? "0" : Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3 ?
  value.toExponential(1).replace(".0e", "e").replace("e+", "e") : String(Number(value.toPrecision(4)));

function ticks([low, high], log, most, least = 0) {
  if (log) {
    const powers = [];
    for (let k = Math.floor(Math.log10(low)); k <= Math.ceil(Math.log10(high)); k++) powers.push(10 ** k);
    const choices = [[1], [1, 3], [1, 2, 5], [1, 2, 3, 4, 5, 6, 7, 8, 9]].map(digits =>
      powers.flatMap(power => digits.map(digit => digit * power)).filter(v => v >= low && v <= high));
    return choices.find(values => values.length > 2) ?? choices.at(-1);
  }
  const rough = (high - low) / most || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(least, [1, 2, 5, 10].map(m => m * power).find(s => s >= rough));
  const values = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-9; v += step) values.push(Number(v.toPrecision(12)));
  return values;
}

const distinct = points => [...new Set(points.map(point => point[0]))].filter(v => v > 0).sort((a, b) => a - b);

function range(values, log) {
  const good = values.filter(v => Number.isFinite(v) && (!log || v > 0));
  if (!good.length) return [1, 2];
  const [low, high] = [Math.min(...good), Math.max(...good)];
  if (log) return low < high ? [low / (high / low) ** 0.05, high * (high / low) ** 0.05] : [low / 2, high * 2];
  const pad = 0.05 * (high - low) || 0.5;
  return [low - pad, high + pad];
}

function chart(figure, views) {
  const hidden = new Set(), svg = draw("svg", {tabindex: 0, role: "group"}), tip = make("output", {className: "tip", hidden: true});
  const select = make("select", {}, ...views.map((view, i) => make("option", {value: i}, view.name)));
  const tools = make("div", {className: "tools"}), plot = make("div", {className: "plot"}, svg, tip);
  svg.setAttribute("aria-label", "Chart; the arrow keys go from point to point and from line to line.");
  if (views.length > 1) tools.append(make("label", {}, "View", select));
  const names = new Map(views.flatMap(view => view.lines.map(line => [line.name, line.colour])));
  for (const [name, colour] of names) {
    const swatch = make("span", {className: "swatch"}), box = make("input", {type: "checkbox", checked: true});
    swatch.style.borderColor = colour ?? "currentColor";
    box.onchange = () => { hidden[box.checked ? "delete" : "add"](name); render(); };
    tools.append(make("label", {}, box, swatch, name));
  }
  let points = [], current = null;

  function render() {
    const view = views[select.value], width = Math.max(240, plot.clientWidth), lines = view.lines.filter(line => !hidden.has(line.name));
    const values = lines.flatMap(line => line.points);
    const xs = range(values.map(p => p[0]), view.log), ys = range(values.flatMap(([, y, e]) => [y, y - e, y + e]), view.log);
    const scale = ([low, high], log, from, to) => v => {
      const share = log ? Math.log(v / low) / Math.log(high / low) : (v - low) / (high - low);
      return from + share * (to - from);
    };
    const x = scale(xs, view.log, EDGE.left, width - EDGE.right), y = scale(ys, view.log, HEIGHT - EDGE.bottom, EDGE.top);
    const bottom = HEIGHT - EDGE.bottom, children = [];
    for (const t of ticks(ys, view.log, 6)) children.push(
      draw("path", {class: "axis", d: `M${EDGE.left} ${y(t)}H${width - EDGE.right}`}),
      draw("text", {x: EDGE.left - 6, y: y(t) + 4, "text-anchor": "end"}, short(t)));
    let free = -Infinity;
    const least = values.every(p => Number.isInteger(p[0])) ? 1 : 0; // there is no half of a step
    for (const t of view.log ? distinct(values) : ticks(xs, false, width / 90, least)) {
      if (x(t) < free) continue;
      free = x(t) + 34;
      children.push(draw("path", {class: "axis", d: `M${x(t)} ${bottom}v5`}),
        draw("text", {x: x(t), y: bottom + 18, "text-anchor": "middle"}, short(t)));
    }
    children.push(draw("path", {class: "axis", d: `M${EDGE.left} ${bottom}H${width - EDGE.right}`}),
      draw("text", {x: (EDGE.left + width - EDGE.right) / 2, y: HEIGHT - 6, "text-anchor": "middle"}, view.x));
    points = [];
    for (const line of lines) {
      const drawn = line.points.filter(([a, b]) => Number.isFinite(a) && Number.isFinite(b) && (!view.log || (a > 0 && b > 0)));
      const colour = line.colour ?? "currentColor", places = drawn.map(([a, b]) => [x(a), y(b)]);
      children.push(draw("path", {class: `line${line.reference ? " reference" : ""}`, stroke: colour, d: places.map((p, i) => `${i ? "L" : "M"}${p.join(" ")}`).join("")}));
      for (const [i, [a, b, error]] of drawn.entries()) {
        const [px, py] = places[i];
        const low = view.log ? Math.max(b - error, ys[0]) : b - error;
        if (error) children.push(draw("path", {stroke: colour, d: `M${px} ${y(low)}V${y(b + error)}`}));
        if (!line.reference) children.push(draw("circle", {cx: px, cy: py, r: 3, fill: colour}));
        points.push({line: line.name, px, py, words: `${line.name}: ${short(b)}${error ? ` \u00b1 ${short(error)}` : ""} at ${short(a)}`});
      }
    }
    svg.replaceChildren(...children);
    svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    figure.querySelector(".unit").textContent = view.y;
    show(null);
  }

  function show(point) {
    current = point;
    for (const ring of all(".ring", svg)) ring.remove();
    tip.hidden = point === null;
    if (point === null) return;
    svg.append(draw("circle", {class: "ring", cx: point.px, cy: point.py, r: 6}));
    tip.value = point.words;
    tip.style.left = `${Math.max(0, Math.min(point.px + 10, plot.clientWidth - tip.offsetWidth))}px`;
    tip.style.top = `${point.py > 60 ? point.py - tip.offsetHeight - 10 : point.py + 12}px`;
  }

  svg.onpointermove = svg.onpointerdown = event => {
    const box = svg.getBoundingClientRect(), [mx, my] = [event.clientX - box.left, event.clientY - box.top];
    const far = point => (point.px - mx) ** 2 + (point.py - my) ** 2;
    show(points.length ? points.reduce((best, point) => far(point) < far(best) ? point : best) : null);
  };
  svg.onpointerleave = () => show(null);
  svg.onblur = () => show(null);
  svg.onkeydown = event => {
    const step = {ArrowRight: 1, ArrowLeft: -1}[event.key], turn = {ArrowDown: 1, ArrowUp: -1}[event.key];
    if (event.key === "Escape") show(null);
    if (!(step || turn) || !points.length) return;
    event.preventDefault();
    if (current === null) return show(points[0]);
    if (step) {
      const own = points.filter(point => point.line === current.line);
      return show(own[Math.max(0, Math.min(own.length - 1, own.indexOf(current) + step))]);
    }
    const lines = [...new Set(points.map(point => point.line))], next = lines[(lines.indexOf(current.line) + turn + lines.length) % lines.length];
    const near = points.filter(point => point.line === next);
    show(near.reduce((best, point) => Math.abs(point.px - current.px) < Math.abs(best.px - current.px) ? point : best));
  };
  select.onchange = render;
  figure.prepend(tools, make("div", {className: "unit"}), plot);
  new ResizeObserver(render).observe(plot);
}

for (const figure of all("figure.chart")) chart(figure, JSON.parse(figure.querySelector("script").textContent));
