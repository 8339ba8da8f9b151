// Several runs: a table of how they are getting on, and their curves in the same charts.

import { ask } from "./api.js";
import { lineOfRun } from "./chart.js";
import { Charts } from "./charts.js";
import { el, put, whole } from "./dom.js";
import { address } from "./places.js";
import { badge, reward, timeLeft } from "./status.js";

const AT_FIRST = 8; // runs whose curves are shown before anybody chooses

export class Compare {
  constructor(root, app) {
    this.app = app;
    this.hidden = new Set(app.runs().slice(AT_FIRST).map((run) => run.name));
    this.table = el("table", { class: "runs" });
    this.charts = new Charts({ hidden: () => this.hidden, legend: false, hero: "reward" });
    this.differing = el("section", { hidden: true });
    root.append(
      el("header", {}, el("p", { class: "eyebrow" }, "grpokit watch"), el("h1", {}, "Runs")),
      el("div", { class: "wide", tabindex: "0", role: "group", "aria-label": "Runs" }, this.table),
      el("section", {}, el("h2", {}, "Side by side"), this.charts.element),
      this.differing,
    );
  }

  async show() {
    this.showTable();
    const names = this.app.runs().map((run) => run.name);
    const shown = names.filter((name) => !this.hidden.has(name));
    const found = await ask("compare", { run: shown });
    const lines = new Map(names.map((name, i) => [name, lineOfRun(i)]));
    for (const panel of found.panels) panel.lines = panel.lines.map((line) => ({ ...line, ...lines.get(line.label) }));
    this.charts.update(found.panels);
    this.showDiffering(shown, found.differing);
  }

  async changed(runs, before) {
    const isNew = (run) => run.versions.overview !== before.get(run.name)?.versions.overview;
    if (runs.some((run) => isNew(run) && !this.hidden.has(run.name))) await this.show();
    else this.showTable();
  }

  showTable() {
    const focused = document.activeElement?.closest?.("button[data-run]")?.dataset.run;
    const head = ["run", "state", "step", "reward", "time left"].map((title) => el("th", { scope: "col" }, title));
    const rows = this.app.runs().map((run, i) => {
      const { colour, dash } = lineOfRun(i);
      const key = el("i", { class: dash ? "line dashed" : "line" });
      key.style.setProperty("--key", `var(${colour})`);
      const toggle = el("button", {
        type: "button", class: "toggle", "data-run": run.name, "aria-pressed": String(!this.hidden.has(run.name)),
        "aria-label": `curves of ${run.name}`, onclick: () => this.toggle(run.name),
      }, key);
      const said = run.text === run.state ? null : el("small", {}, run.text);
      const step = run.maxSteps ? `${whole(run.step)} of ${whole(run.maxSteps)}` : whole(run.step);
      return el("tr", {},
        el("th", { scope: "row" }, toggle, el("a", { href: address(run.name) }, run.name)),
        el("td", {}, badge(run), said), el("td", {}, step), el("td", {}, reward(run)), el("td", {}, timeLeft(run) || "\u2013"));
    });
    put(this.table, el("thead", {}, el("tr", {}, head)), el("tbody", {}, rows));
    if (focused !== undefined) [...this.table.querySelectorAll("button[data-run]")].find((button) => button.dataset.run === focused)?.focus();
  }

  toggle(name) {
    if (!this.hidden.delete(name)) this.hidden.add(name);
    this.app.update(() => this.show());
  }

  showDiffering(names, rows) {
    this.differing.hidden = names.length < 2 || !rows.length;
    const head = el("tr", {}, el("th", {}, "option"), names.map((name) => el("th", { scope: "col" }, name)));
    const body = rows.map((row) => el("tr", {}, el("th", { scope: "row" }, row.name), row.values.map((value) => el("td", {}, value))));
    put(this.differing, el("h2", {}, "Settings that differ"),
      el("div", { class: "wide", tabindex: "0", role: "group", "aria-label": "Settings that differ" },
        el("table", { class: "options" }, el("thead", {}, head), el("tbody", {}, body))));
  }

  close() {
    this.charts.close();
  }
}
