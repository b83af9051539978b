"use strict";
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
// Tables: a click on a head sorts by its column, up, down and as it was; a button copies what is seen as CSV.
const number = text => {
  const [found] = text.replaceAll(",", "").replaceAll("\u2212", "-").match(/[-+]?\d*\.?\d+(e[-+]?\d+)?/i) ?? [];
  return found === undefined ? NaN : Number(found);
};
const isNumeric = cells => cells.some(text => /\d/.test(text)) && cells.every(text => /^([-+\u2212.\d]|$|\u2013)/.test(text));

function sort(table, column, order) {
  const rows = all("tr", table).slice(1), text = row => row.cells[column]?.textContent.trim() ?? "";
  const numeric = isNumeric(rows.map(text)), sign = order === "descending" ? -1 : 1;
  rows.sort((a, b) => {
    if (order === "none") return a.dataset.place - b.dataset.place;
    const [x, y] = [a, b].map(row => numeric ? number(text(row)) : text(row));
    if (numeric) return Number.isNaN(x) - Number.isNaN(y) || sign * (x - y) || 0;
    return sign * x.localeCompare(y, undefined, {numeric: true});
  });
  rows[0]?.parentNode.append(...rows);
}

function csv(table) {
  const quoted = text => /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  return all("tr", table).map(row => [...row.cells].map(cell => quoted(cell.textContent.trim())).join(",")).join("\n") + "\n";
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // a page that is not secure has no clipboard of its own
    const field = make("textarea", {value: text});
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    if (!done) throw new Error("nothing was copied");
  }
}

for (const table of all("table")) {
  all("tr", table).forEach((row, i) => { row.dataset.place = i; });
  for (const [column, head] of all("th", table).entries()) {
    const button = make("button", {type: "button", title: "Sort"}, ...head.childNodes);
    if (!button.textContent) button.setAttribute("aria-label", "Sort by name");
    head.append(button);
    head.ariaSort = "none";
    button.onclick = () => {
      const next = {none: "ascending", ascending: "descending", descending: "none"}[head.ariaSort];
      for (const other of all("th", table)) other.ariaSort = "none";
      head.ariaSort = next;
      sort(table, column, next);
    };
  }
  const button = make("button", {type: "button", className: "copy"}, "Copy as CSV");
  button.onclick = () => copy(csv(table)).then(
    () => { button.textContent = "Copied"; }, () => { button.textContent = "Not copied"; },
  ).then(() => setTimeout(() => { button.textContent = "Copy as CSV"; }, 1200));
  table.after(button);
}

// A picture opens on the whole window, where it is enlarged by + and −, by buttons, or by the wheel with Ctrl.
const ZOOMS = [0.25, 0.5, 1, 2, 3, 4, 6, 8];
const large = make("img"), factor = make("output"), sheet = make("div", {className: "sheet", tabIndex: 0}, large);
const tool = (words, label, onclick) => {
  const button = make("button", {type: "button", onclick}, words);
  button.setAttribute("aria-label", label);
  return button;
};
const dialog = make("dialog", {}, make("div", {className: "tools"},
  tool("\u2212", "Smaller", () => zoom(-1)), tool("+", "Larger", () => zoom(1)), factor,
  tool("Close", "Close", () => dialog.close())), sheet);
let at = 2;

function zoom(change) {
  const [before, x, y] = [ZOOMS[at], sheet.scrollLeft + sheet.clientWidth / 2, sheet.scrollTop + sheet.clientHeight / 2];
  at = Math.max(0, Math.min(ZOOMS.length - 1, at + change));
  large.style.width = `${large.naturalWidth * ZOOMS[at]}px`;
  factor.value = `${ZOOMS[at] * 100} %`;
  const ratio = ZOOMS[at] / before;
  sheet.scrollTo(x * ratio - sheet.clientWidth / 2, y * ratio - sheet.clientHeight / 2);
}

dialog.onkeydown = event => {
  const change = {"+": 1, "=": 1, "-": -1}[event.key];
  if (change) zoom(change);
};
sheet.addEventListener("wheel", event => {
  if (!event.ctrlKey) return;
  event.preventDefault();
  zoom(Math.sign(-event.deltaY));
}, {passive: false});

for (const picture of all("img.zoomable")) {
  const button = make("button", {type: "button", className: "zoom"});
  button.setAttribute("aria-label", `Enlarge: ${picture.alt}`);
  picture.replaceWith(button);
  button.append(picture);
  button.onclick = () => {
    if (!dialog.isConnected) document.body.append(dialog);
    [large.src, large.alt, at] = [picture.src, picture.alt, 2];
    dialog.setAttribute("aria-label", picture.alt);
    dialog.showModal();
    large.decode().then(() => { zoom(0); sheet.focus(); });
  };
}
