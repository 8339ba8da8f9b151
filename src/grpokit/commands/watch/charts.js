// A grid of charts that are kept while their data grow, so that the pointer, the focus and the toggles stay where they are.

import { Chart, drawing } from "./chart.js";
import { el } from "./dom.js";

export class Charts {
  constructor({ hidden = () => new Set(), legend = true, hero = "" } = {}) {
    this.charts = new Map();
    this.how = { hidden, legend };
    this.hero = hero; // the key of the panel that is as wide as the page
    this.first = el("div", { class: "hero" });
    this.grid = el("div", { class: "plots" });
    const smoothing = el("input", { type: "checkbox", checked: drawing.smooth, onchange: (event) => this.setSmooth(event.target.checked) });
    this.element = el("div", {}, el("p", { class: "note tools" }, el("label", {}, smoothing, " rolling mean over the faint values of each step")), this.first, this.grid);
  }

  setSmooth(on) {
    drawing.smooth = on;
    this.draw();
  }

  draw() {
    for (const chart of this.charts.values()) chart.draw();
  }

  update(panels) {
    const keys = new Set(panels.map((panel) => panel.key));
    for (const [key, chart] of this.charts) {
      if (!keys.has(key)) {
        chart.close();
        chart.element.remove();
        this.charts.delete(key);
      }
    }
    panels.forEach((panel, i) => {
      const known = this.charts.get(panel.key);
      if (known) return known.update(panel);
      const isHero = panel.key === this.hero;
      const chart = new Chart(panel, { height: isHero ? 230 : 190, hidden: this.how.hidden(), legend: this.how.legend });
      this.charts.set(panel.key, chart);
      if (isHero) return this.first.append(chart.element);
      const next = panels.slice(i + 1).map((later) => this.charts.get(later.key)).find((later) => later?.element.parentNode === this.grid);
      return this.grid.insertBefore(chart.element, next?.element ?? null);
    });
    this.element.hidden = !panels.length;
  }

  close() {
    for (const chart of this.charts.values()) chart.close();
  }
}
