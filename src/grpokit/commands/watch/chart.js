// Curves against the step: drawn as SVG, with the figures of a step under the pointer or by the arrow keys.

import { el, number, percent, put, seconds, svg } from "./dom.js";
import { linearTicks, logTicks, nearest, place, smooth, tickStep, trendWindow, widened } from "./scale.js";

const MARGIN = { left: 56, right: 14, top: 10, bottom: 26 };
const DASHES = ["", "7 4", "2 3"];

// What holds for all charts of the page.
export const drawing = { smooth: true };

export class Chart {
  // `hidden` has the labels that are not drawn; charts that share it are toggled together.
  constructor(panel, { height = 200, hidden = new Set(), legend = true } = {}) {
    this.height = height;
    this.hidden = hidden;
    this.hasLegend = legend;
    this.log = null; // null: as the panel says
    this.at = null; // the step whose figures are shown
    this.legend = el("ul", { class: "legend" });
    this.logButton = el("button", { type: "button", class: "quiet", "aria-pressed": "false", onclick: () => this.toggleLog() }, "log");
    this.svg = svg("svg", { role: "img", tabindex: "0", height });
    this.box = el("div", { class: "box", role: "status", hidden: true });
    this.area = el("div", { class: "area" }, this.svg, this.box);
    this.title = el("h3");
    this.caption = el("figcaption");
    this.element = el("figure", { class: "plot" }, el("div", { class: "head" }, this.title, this.logButton), this.legend, this.area, this.caption);
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerdown", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.leave());
    this.svg.addEventListener("blur", () => this.leave());
    this.svg.addEventListener("keydown", (event) => this.key(event));
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(this.area);
    this.update(panel);
  }

  close() {
    this.observer.disconnect();
  }

  update(panel) {
    this.panel = panel;
    this.element.id = `plot-${panel.key.replace(/\W+/g, "-")}`;
    this.title.textContent = panel.title;
    this.caption.textContent = panel.caption;
    this.svg.setAttribute("aria-label", describe(panel));
    this.drawLegend();
    this.draw();
  }

  drawLegend() {
    const { lines } = this.panel;
    const bands = lines.filter((line) => line.band);
    if (!this.hasLegend || lines.length + bands.length < 2) return put(this.legend);
    const toggles = lines.map((line, i) => {
      const key = el("i", { class: this.panel.kind === "stacked" ? "area" : line.mark === "dots" ? "dot" : "line" });
      key.style.setProperty("--key", `var(${colour(line, i)})`);
      const pressed = String(!this.hidden.has(line.label));
      return el("li", {}, el("button", { type: "button", class: "toggle", "aria-pressed": pressed, onclick: () => this.toggle(line.label) }, key, line.label));
    });
    const also = bands.map((line) => {
      const key = el("i", { class: "band" });
      key.style.setProperty("--key", `var(${colour(line, 0)})`);
      return el("li", {}, key, line.band);
    });
    put(this.legend, toggles, also);
  }

  toggle(label) {
    if (!this.hidden.delete(label)) this.hidden.add(label);
    const place = [...this.legend.querySelectorAll("button")].indexOf(document.activeElement);
    this.drawLegend();
    this.legend.querySelectorAll("button")[place]?.focus();
    this.draw();
  }

  toggleLog() {
    this.log = !this.isLog;
    this.draw();
  }

  // ---------------------------------------------------------------- drawing

  shown() {
    const { lines, kind } = this.panel;
    const kept = lines.map((line, i) => ({ ...line, tint: colour(line, i), dash: line.dash ?? "" })).filter((line) => !this.hidden.has(line.label));
    if (kind !== "stacked") {
      return kept.map((line) => {
        const window = drawing.smooth && this.panel.trend && !line.mark ? trendWindow(line.x.length) : 1;
        if (window === 1) return { ...line, strong: line.y };
        const band = line.low ? { low: smooth(line.low, window), high: smooth(line.high, window) } : {};
        return { ...line, ...band, strong: smooth(line.y, window), faint: line.y };
      });
    }
    let below = null;
    return kept.map((line) => {
      const window = drawing.smooth ? trendWindow(line.x.length) : 1;
      const heights = smooth(line.y, window);
      const low = below ?? heights.map(() => 0);
      below = heights.map((height, i) => low[i] + height);
      return { ...line, low, high: below, strong: below };
    });
  }

  draw() {
    const width = this.area.clientWidth;
    if (!width) return;
    const lines = this.shown();
    this.width = width;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${this.height}`);
    this.svg.setAttribute("width", width);
    this.scales(lines, width);
    const parts = [this.axes(), lines.map((line) => this.line(line))];
    this.cursor = svg("g", { class: "cursor" });
    put(this.svg, parts, this.cursor);
    if (this.at !== null) this.point(null);
  }

  scales(lines, width) {
    const xs = lines.flatMap((line) => (line.x.length ? [line.x[0], line.x[line.x.length - 1]] : []));
    const [first, last] = xs.length ? [Math.min(...xs), Math.max(...xs)] : [0, 1];
    let low = Infinity;
    let high = -Infinity;
    for (const line of lines) {
      for (const values of [line.strong, line.faint ?? [], line.low ?? [], line.high ?? []]) {
        for (const value of values) {
          if (value < low) low = value;
          if (value > high) high = value;
        }
      }
    }
    if (low > high) [low, high] = [0, 1];
    const { panel } = this;
    const canLog = low > 0 && panel.kind !== "stacked";
    this.isLog = canLog && (this.log ?? (panel.logOver !== null && low * panel.logOver < high));
    this.logButton.hidden = !canLog;
    this.logButton.setAttribute("aria-pressed", String(this.isLog));
    if (!this.isLog && panel.fromZero && low >= 0) low = 0;
    if (high === low) [low, high] = low === 0 ? [0, panel.percent ? 0.01 : 1] : [low - Math.abs(low) * 0.1, high + Math.abs(high) * 0.1];
    this.rowStep = tickStep(low, high, 4);
    if (!this.isLog) [low, high] = widened(low, high, this.rowStep);
    this.x = { low: first, high: last === first ? first + 1 : last, from: MARGIN.left, to: width - MARGIN.right, log: false };
    this.y = { low, high, from: this.height - MARGIN.bottom, to: MARGIN.top, log: this.isLog };
  }

  axes() {
    const ticks = this.isLog ? logTicks(this.y.low, this.y.high) : linearTicks(this.y.low, this.y.high, this.rowStep);
    const rows = ticks.map((tick) => {
      const y = place(this.y, tick);
      return [
        svg("line", { class: "grid", x1: MARGIN.left, x2: this.width - MARGIN.right, y1: y, y2: y }),
        svg("text", { class: "tick", x: MARGIN.left - 7, y: y + 4, "text-anchor": "end" }, this.tick(tick)),
      ];
    });
    const most = Math.max(2, Math.floor(this.width / 110));
    const steps = linearTicks(this.x.low, this.x.high, tickStep(this.x.low, this.x.high, most)).filter(Number.isInteger);
    const columns = steps.map((tick) => svg("text", { class: "tick", x: place(this.x, tick), y: this.height - 8, "text-anchor": "middle" }, number(tick)));
    const base = svg("line", { class: "axis", x1: MARGIN.left, x2: this.width - MARGIN.right, y1: this.y.from, y2: this.y.from });
    return [rows, base, columns];
  }

  line(line) {
    const xs = line.x.map((x) => place(this.x, x));
    const at = (values) => values.map((y, i) => `${xs[i].toFixed(1)} ${place(this.y, y).toFixed(1)}`);
    const parts = [];
    const style = `var(${line.tint})`;
    const draw = (given, d) => {
      const path = svg("path", { ...given, d });
      path.style.setProperty("--ink-of-line", style);
      parts.push(path);
    };
    if (line.low) {
      const around = [...at(line.high), ...at(line.low).reverse()];
      draw({ class: this.panel.kind === "stacked" ? "layer" : "around" }, around.length ? `M${around.join("L")}Z` : "");
    }
    if (this.panel.kind === "stacked") return parts;
    const few = line.x.length <= 15 || line.mark;
    if (line.faint) draw({ class: "faint" }, `M${at(line.faint).join("L")}`);
    if (line.mark !== "dots" && line.x.length > 1) draw({ class: "curve", "stroke-dasharray": line.dash || null }, `M${at(line.strong).join("L")}`);
    if (few && line.x.length <= 60) draw({ class: "points" }, at(line.strong).map((point) => `M${point}h0`).join(""));
    return parts;
  }

  // As `value`, but short enough for the margin.
  tick(value) {
    const isTiny = !this.panel.percent && this.panel.unit !== "seconds" && value !== 0 && Math.abs(value) < 1e-4;
    return isTiny ? Number(value.toPrecision(2)).toExponential().replaceAll("-", "\u2212") : this.value(value);
  }

  value(value) {
    if (this.panel.percent) return percent(value);
    return this.panel.unit === "seconds" ? seconds(value) : number(value);
  }

  // ---------------------------------------------------------------- the figures of a step

  steps() {
    const lines = this.panel.lines.filter((line) => !this.hidden.has(line.label));
    return lines.reduce((longest, line) => (line.x.length > longest.length ? line.x : longest), []);
  }

  point(event) {
    const xs = this.steps();
    if (!xs.length || !this.x) return;
    if (event) {
      const left = event.clientX - this.svg.getBoundingClientRect().left;
      const share = (left - this.x.from) / (this.x.to - this.x.from);
      this.at = xs[nearest(xs, this.x.low + share * (this.x.high - this.x.low))];
    }
    const x = place(this.x, this.at);
    const shown = this.panel.lines.map((line, i) => ({ line, tint: colour(line, i) })).filter(({ line }) => line.x.length && !this.hidden.has(line.label));
    const rows = shown.map(({ line, tint }) => {
      const i = nearest(line.x, this.at);
      const key = el("i", { class: "line" });
      key.style.setProperty("--key", `var(${tint})`);
      const when = line.x[i] === this.at ? "" : ` (step ${number(line.x[i])})`;
      return el("li", {}, key, el("span", {}, line.label + when), el("b", {}, this.value(line.y[i])));
    });
    put(this.cursor, svg("line", { x1: x, x2: x, y1: this.y.to, y2: this.y.from }));
    put(this.box, el("p", {}, `step ${number(this.at)}`), el("ul", {}, rows));
    this.box.hidden = false;
    const room = this.width - this.box.offsetWidth - 4;
    this.box.style.left = `${Math.max(0, Math.min(room, x > this.width / 2 ? x - this.box.offsetWidth - 12 : x + 12))}px`;
  }

  leave() {
    this.at = null;
    this.box.hidden = true;
    if (this.cursor) put(this.cursor);
  }

  key(event) {
    const xs = this.steps();
    if (!xs.length) return;
    if (event.key === "Escape") return this.leave();
    const last = xs.length - 1;
    const now = this.at === null ? last : nearest(xs, this.at);
    const moves = { ArrowLeft: now - (this.at === null ? 0 : 1), ArrowRight: now + 1, Home: 0, End: last };
    if (!(event.key in moves)) return;
    event.preventDefault();
    this.at = xs[Math.max(0, Math.min(last, moves[event.key]))];
    this.point(null);
  }
}

const COLOURS = ["--blue", "--red", "--green", "--pink", "--amber", "--grey"];

function colour(line, i) {
  return line.colour ?? COLOURS[i % COLOURS.length];
}

// The colour and the dashes of the run at a place of the list.
export function lineOfRun(i) {
  return { colour: COLOURS[i % COLOURS.length], dash: DASHES[Math.floor(i / COLOURS.length) % DASHES.length] };
}

function describe(panel) {
  const said = panel.lines.filter((line) => line.x.length).map((line) => {
    const last = line.x.length - 1;
    return `${line.label}: ${number(line.y[0])} at step ${number(line.x[0])}, ${number(line.y[last])} at step ${number(line.x[last])}`;
  });
  return `${panel.title} against the step. ${said.join("; ")}. The arrow keys show the figures of a step.`;
}
