// One run: how it is getting on, advice, cards, curves, the plan and the settings.

import { ask } from "./api.js";
import { Charts } from "./charts.js";
import { el, put, whole } from "./dom.js";
import { statusLine } from "./status.js";

export class Overview {
  constructor(root, name, app) {
    this.name = name;
    this.app = app;
    this.facts = el("p", { class: "facts" });
    this.status = el("div");
    this.advice = el("section", { class: "advice", "aria-label": "Advice", hidden: true });
    this.problems = el("ul", { class: "problems", hidden: true });
    this.cards = el("dl", { class: "cards" });
    this.charts = new Charts({ hero: "reward" });
    this.plan = el("section", { hidden: true });
    this.settings = el("table", { class: "options" });
    this.count = el("span", { class: "note" });
    const settings = el("section", {}, el("details", {}, el("summary", {}, el("h2", {}, "Settings"), this.count), this.settings));
    const header = el("header", {}, el("p", { class: "eyebrow" }, "grpokit run"), el("h1", {}, name), this.facts);
    root.append(header, this.status, this.problems, this.advice, this.cards, el("section", {}, this.charts.element), this.plan, settings);
  }

  async show() {
    const run = await ask("overview", { run: this.name });
    put(this.status, statusLine(run));
    this.facts.textContent = run.facts.join(" \u00b7 ");
    this.showAdvice(run.advice);
    put(this.problems, run.problems.map((text) => el("li", {}, text)));
    this.problems.hidden = !run.problems.length;
    put(this.cards, run.cards.map(card));
    this.cards.hidden = !run.cards.length;
    this.charts.update(run.panels);
    this.showPlan(run.about);
    this.showSettings(run.settings);
  }

  async changed(runs, before) {
    const now = runs.find((run) => run.name === this.name);
    if (!now) return;
    put(this.status, statusLine(now));
    if (now.versions.overview !== before.get(this.name)?.versions.overview) await this.show();
  }

  showAdvice(advice) {
    this.advice.hidden = !advice.length;
    const items = advice.map((said) =>
      el("li", { class: said.severity }, el("b", {}, said.severity === "warn" ? "Warning" : "Note"), el("span", {}, said.text),
        el("small", {}, `first seen at step ${whole(said.step)}${said.now ? "" : ", no longer holds"}`, said.guide ? [" \u00b7 see ", el("code", {}, `docs/en/${said.guide}`)] : "")));
    put(this.advice, el("h2", {}, "Advice"), el("ul", {}, items));
  }

  showPlan(about) {
    const size = about.parameters ? `${whole(about.parameters)} parameters` : null;
    const trained = about.trainable_parameters && about.trainable_parameters !== about.parameters ? `${whole(about.trainable_parameters)} trained` : null;
    const rows = [
      ["model", [about.model, size, trained]],
      ["batch", [about.plan]],
      ["loss", [about.loss]],
      ["formula", about.formula ? [el("pre", { tabindex: "0" }, about.formula)] : []],
      ["where", [about.device, about.dtype, about.ranks ? `${about.ranks} rank${about.ranks === 1 ? "" : "s"}` : null, about.torch ? `torch ${about.torch}` : null]],
    ].map(([name, parts]) => [name, parts.filter((part) => part !== null && part !== undefined)]);
    const shown = rows.filter(([, parts]) => parts.length);
    this.plan.hidden = !shown.length;
    const items = shown.map(([name, parts]) => [el("dt", {}, name), el("dd", {}, parts.flatMap((part, i) => (i ? [" \u00b7 ", part] : [part])))]);
    put(this.plan, el("h2", {}, "Plan"), el("dl", { class: "columns plan" }, items));
  }

  showSettings(settings) {
    const changed = settings.filter((setting) => setting.changed).length;
    this.count.textContent = settings.length ? `${changed} of ${settings.length} differ from their defaults` : "config.yaml isn\u2019t there yet";
    const rows = settings.map(({ name, value, changed: is, default: was }) =>
      el("tr", { class: is ? "changed" : null }, el("th", { scope: "row" }, name),
        el("td", {}, value, was ? el("span", { class: "note" }, ` default ${was}`) : null)));
    put(this.settings, el("tbody", {}, rows));
  }

  close() {
    this.charts.close();
  }
}

function card({ title, value, note, before }) {
  return el("div", { class: "card" }, el("dt", {}, title),
    el("dd", {}, before ? el("span", {}, `${before} \u2192 `) : null, value, el("small", {}, note)));
}
