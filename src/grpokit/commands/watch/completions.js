// The completions of a step: a list to filter and to sort, and each in full, an episode as a conversation.

import { ask } from "./api.js";
import { el, later, number, put, signed, whole } from "./dom.js";
import { address } from "./places.js";
import { Stepper } from "./stepper.js";

export class Completions {
  constructor(root, name, app) {
    this.name = name;
    this.app = app;
    this.page = 0;
    this.opened = null; // "group/generation"
    this.asked = 0;
    this.stepper = new Stepper(() => this.choose());
    this.list = el("ol", { class: "rows" });
    this.found = el("p", { class: "note", role: "status" });
    this.pager = el("p", { class: "pager" });
    root.append(
      el("header", {}, el("p", { class: "eyebrow" }, name), el("h1", {}, "Completions")),
      this.stepper.element, this.filters(), this.found, this.list, this.pager,
    );
  }

  filters() {
    const search = later(() => this.choose());
    const text = (name, label, hint) => el("label", {}, label, el("input", { name, type: "text", inputmode: "decimal", placeholder: hint, size: 6 }));
    this.ending = el("select", { name: "ending" }, el("option", { value: "" }, "any"));
    const sort = el("select", { name: "sort" }, [["group", "as sampled"], ["reward", "reward"], ["length", "length"]].map(([value, title]) => el("option", { value }, title)));
    const order = el("select", { name: "order", "aria-label": "order" }, el("option", { value: "down" }, "highest first"), el("option", { value: "up" }, "lowest first"));
    this.form = el("form", { class: "filters", oninput: search, onsubmit: (event) => event.preventDefault() },
      el("fieldset", {}, el("legend", {}, "reward"), text("reward_min", "from "), text("reward_max", "to ")),
      el("fieldset", {}, this.lengthTitle = el("legend", {}, "length"), text("length_min", "from "), text("length_max", "to ")),
      el("label", {}, "ended by ", this.ending),
      el("label", {}, "text ", el("input", { name: "text", type: "search", placeholder: "contains" })),
      el("label", {}, "sorted by ", sort), order);
    return this.form;
  }

  choose() {
    this.page = 0;
    this.opened = null;
    this.app.update(() => this.load());
  }

  // The address has a step and perhaps a completion: completions/12/3/4.
  async show([step, group, generation]) {
    this.stepper.start(step);
    this.opened = generation !== undefined ? `${group}/${generation}` : null;
    await this.load();
  }

  async changed(runs, before) {
    const [now, old] = [this.app.run(this.name), before.get(this.name)];
    if (!now || now.versions.completions === old?.versions.completions) return;
    if (this.stepper.follows || !this.stepper.steps.length) return this.load();
    const { steps } = await ask("completions", { run: this.name, step: this.stepper.step });
    this.stepper.update(steps, this.stepper.step); // what one reads stays as it is
  }

  async load() {
    const ticket = (this.asked += 1);
    const filters = Object.fromEntries(new FormData(this.form));
    const found = await ask("completions", { run: this.name, step: this.stepper.wanted, page: this.page, holding: this.opened, ...filters });
    if (ticket !== this.asked) return;
    this.page = found.page;
    this.stepper.update(found.steps, found.step);
    this.remember();
    this.showChoices(found);
    const none = found.steps.length ? "This step has recorded none." : "Waiting for the first completions.";
    this.found.textContent = found.total ? `${whole(found.found)} of ${whole(found.total)} completions that step ${whole(found.step)} has recorded` : none;
    const focused = this.list.contains(document.activeElement) ? document.activeElement.parentNode.dataset.key : null;
    put(this.list, found.rows.map((row) => this.row(row)));
    if (focused) this.list.querySelector(`[data-key="${focused}"] button`)?.focus();
    const turn = (by, title) => el("button", { type: "button", class: "quiet", disabled: this.page + by < 0 || this.page + by >= found.pages, onclick: () => this.turn(by) }, title);
    put(this.pager, found.pages > 1 ? [turn(-1, "\u2039 before"), ` page ${found.page + 1} of ${found.pages} `, turn(1, "after \u203a")] : "");
    const open = this.list.querySelector(`[data-key="${this.opened}"]`);
    if (open) await this.fill(open);
  }

  turn(by) {
    this.page += by;
    this.opened = null;
    this.app.update(() => this.load());
  }

  remember() {
    const step = this.stepper.follows ? "latest" : this.stepper.step;
    this.app.remember(this.name, "completions", step, ...(this.opened ? this.opened.split("/") : []));
  }

  showChoices(found) {
    const value = this.ending.value;
    const endings = Object.entries(found.endings);
    if (value && !(value in found.endings)) endings.push([value, 0]);
    put(this.ending, el("option", { value: "" }, "any"), endings.map(([name, count]) => el("option", { value: name }, `${name} (${count})`)));
    this.ending.value = value;
    this.lengthTitle.textContent = `length, ${found.unit}`;
    for (const [name, range] of [["reward", found.rewardRange], ["length", found.lengthRange]]) {
      this.form.elements[`${name}_min`].placeholder = range ? number(range[0]) : "";
      this.form.elements[`${name}_max`].placeholder = range ? number(range[1]) : "";
    }
  }

  row(row) {
    const key = `${row.group}/${row.generation}`;
    const body = el("div", { class: "full", hidden: true });
    const button = el("button", { type: "button", "aria-expanded": "false", onclick: () => this.app.update(() => this.toggle(item)) },
      el("span", { class: "meta" }, meta(row)), el("span", { class: "excerpt" }, row.text || "(empty)", row.more ? " \u2026" : ""));
    const item = el("li", { "data-key": key }, button, body);
    return item;
  }

  async toggle(item) {
    const body = item.querySelector(".full");
    const isOpen = !body.hidden;
    for (const other of this.list.children) close(other);
    this.opened = isOpen ? null : item.dataset.key;
    if (this.opened) {
      this.stepper.pin(this.stepper.step); // what one reads should not go away
      await this.fill(item);
    }
    this.remember();
  }

  async fill(item) {
    const [group, generation] = item.dataset.key.split("/");
    const full = await ask("completion", { run: this.name, step: this.stepper.step, group, generation });
    const body = item.querySelector(".full");
    const place = full.tokens === null ? null : address(this.name, "tokens", this.stepper.step, full.tokens);
    put(body, [place ? el("p", {}, el("a", { href: place }, "Token by token")) : null, ...inFull(full)]);
    body.hidden = false;
    item.firstChild.setAttribute("aria-expanded", "true");
  }
}

function close(item) {
  item.querySelector(".full").hidden = true;
  item.firstChild.setAttribute("aria-expanded", "false");
}

function meta(row) {
  const sign = row.advantage > 0 ? "up" : row.advantage < 0 ? "down" : "flat";
  return [
    el("b", {}, row.reward === null ? "no reward" : `reward ${number(row.reward)}`),
    row.advantage === null ? null : el("span", { class: sign }, `A ${signed(row.advantage)}`),
    el("span", {}, `length ${whole(row.length)}`),
    el("span", { class: row.ending === "length" ? "cut" : null }, row.ending === "length" ? "cut off" : `ended by ${row.ending}`),
    row.turns ? el("span", {}, `${row.turns} turn${row.turns === 1 ? "" : "s"}`) : null,
    el("span", {}, `group ${row.number + 1}, no. ${row.generation + 1}`),
  ];
}

function inFull(row) {
  const rewards = Object.entries(row.rewards).map(([name, value]) => [name, number(value)]);
  const extras = Object.entries(row.extras).filter(([, value]) => value !== null).map(([name, value]) => [name, text(value)]);
  const columns = Object.entries(row.columns).map(([name, value]) => [name, text(value)]);
  const list = (title, pairs) => (pairs.length ? [el("h3", {}, title), el("dl", { class: "columns" }, pairs.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]))] : []);
  return [
    el("h3", {}, "Prompt", el("small", {}, row.source)),
    Array.isArray(row.prompt) ? conversation(row.prompt, false) : box(text(row.prompt ?? ""), "prompt"),
    list("Columns", columns),
    el("h3", {}, row.messages ? "Episode" : "Completion"),
    row.messages ? conversation(row.messages, true) : box(row.text),
    row.error ? el("p", { class: "cut" }, row.error) : null,
    list("Rewards", rewards),
    list("Logged by the reward functions", extras),
  ];
}

export function conversation(messages, isEpisode) {
  return el("div", { class: "conversation" }, messages.map((message) => {
    const told = message && typeof message === "object" ? message : { content: message };
    const trained = isEpisode && told.role === "assistant";
    const role = trained ? "assistant, trained" : `${told.name ?? told.role ?? ""}${isEpisode ? ", read" : ""}`;
    const calls = (told.tool_calls ?? []).map((call) => `${call?.function?.name ?? "?"}(${text(call?.function?.arguments ?? "")})`);
    const lines = [told.reasoning_content, told.content, ...calls].filter((line) => line !== null && line !== undefined && line !== "");
    return el("div", { class: trained ? "turn trained" : "turn" }, el("div", { class: "role" }, role), box(lines.map(text).join("\n"), trained ? "" : "prompt"));
  }));
}

function text(value) {
  return typeof value === "string" ? value : JSON.stringify(value);
}

function box(content, css = "") {
  return el("pre", { class: css, tabindex: content.length > 500 ? "0" : null }, content || "(empty)");
}
