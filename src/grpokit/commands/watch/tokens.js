// A completion token by token: a quantity as colour, what the loss did to each as a line below it, all figures in a box.

import { ask } from "./api.js";
import { conversation } from "./completions.js";
import { el, number, put, signed, whole } from "./dom.js";
import { bar, QUANTITIES, tint } from "./heat.js";
import { Stepper } from "./stepper.js";

export class Tokens {
  constructor(root, name, app) {
    this.name = name;
    this.app = app;
    this.place = 0;
    this.first = 0;
    this.quantity = "logps";
    this.asked = 0;
    this.stepper = new Stepper(() => this.again(this.place));
    this.choice = el("select", { "aria-label": "completion", onchange: () => this.again(Number(this.choice.value)) });
    const radios = Object.entries(QUANTITIES).map(([key, { title }]) =>
      el("label", {}, el("input", { type: "radio", name: "quantity", value: key, checked: key === this.quantity, onchange: () => this.paint(key) }), ` ${title}`));
    this.meta = el("p", { class: "meta" });
    this.prompt = el("div");
    this.bar = el("div", { class: "colours" });
    this.key = el("ul", { class: "states" });
    this.pager = el("p", { class: "pager" });
    this.text = el("div", { class: "tokens", tabindex: "0", role: "application", "aria-label": "Tokens. The arrow keys go from one to the next.",
      onkeydown: (event) => this.move(event), onpointerover: (event) => this.point(event), onclick: (event) => this.click(event),
      onpointerleave: () => document.activeElement === this.text || this.leave(), onfocus: () => this.at ?? this.select(0), onblur: () => this.leave() });
    this.box = el("div", { class: "box figures", role: "status", hidden: true });
    this.note = el("p", { class: "note", hidden: true });
    this.body = el("div", { hidden: true }, el("p", { class: "chosen" }, this.choice), this.meta, el("details", { class: "prompt" }, el("summary", {}, "Prompt"), this.prompt),
      el("fieldset", { class: "quantities" }, el("legend", { class: "unseen" }, "Colour"), radios), this.bar, this.key, this.pager,
      el("div", { class: "area" }, this.text, this.box));
    root.append(el("header", {}, el("p", { class: "eyebrow" }, name), el("h1", {}, "Tokens")), this.stepper.element, this.note, this.body);
  }

  again(place) {
    this.place = place;
    this.first = 0;
    this.app.update(() => this.load());
  }

  // The address has a step and a completion: tokens/12/3.
  async show([step, place]) {
    this.stepper.start(step);
    if (place !== undefined) this.place = Number(place);
    await this.load();
  }

  async changed(runs, before) {
    const [now, old] = [this.app.run(this.name), before.get(this.name)];
    if (!now || now.versions.tokens === old?.versions.tokens) return;
    if (this.stepper.follows) return this.load();
    const { steps } = await ask("recorded", { run: this.name, step: this.stepper.step });
    this.stepper.update(steps, this.stepper.step);
  }

  async load() {
    const ticket = (this.asked += 1);
    const found = await ask("recorded", { run: this.name, step: this.stepper.wanted });
    if (ticket !== this.asked) return;
    this.note.hidden = found.steps.length > 0;
    this.note.textContent = "No tokens were recorded yet. `grpokit train --log_tokens N` records those of N completions a step.";
    this.body.hidden = !found.steps.length;
    this.stepper.element.hidden = !found.steps.length;
    if (!found.steps.length) return;
    this.stepper.update(found.steps, found.step);
    this.states = found.states;
    this.place = Math.min(this.place, found.completions.length - 1);
    put(this.choice, found.completions.map((told, i) => el("option", { value: i }, title(told, i))));
    this.choice.value = this.place;
    const data = await ask("tokens", { run: this.name, step: found.step, place: this.place, first: this.first });
    if (ticket !== this.asked) return;
    this.remember();
    this.showTokens(data);
  }

  showTokens(data) {
    this.data = data;
    this.at = null;
    this.box.hidden = true;
    const { columns } = data;
    put(this.meta, el("b", {}, data.reward === null ? "no reward" : `reward ${number(data.reward)}`),
      Object.entries(data.rewards ?? {}).map(([name, value]) => el("span", {}, `${name} ${number(value)}`)),
      el("span", {}, `A ${data.advantage === null || data.advantage === undefined ? "\u2013" : signed(data.advantage)}`),
      el("span", {}, `${whole(data.length)} tokens`), el("span", {}, `ended by ${data.ending ?? data.finish_reason}`), data.source ? el("span", {}, data.source) : null);
    put(this.prompt, conversation(Array.isArray(data.prompt) ? data.prompt : [{ role: "", content: data.prompt ?? "" }], false));
    const counts = this.states.map((_, state) => columns.state.filter((value) => value === state).length);
    put(this.key, this.states.map((state, i) => el("li", {}, el("span", { class: `sample s${i}` }, "abc"), ` ${state} ${whole(counts[i])}`)));
    const more = (by, text) => {
      const next = this.first + by * data.most;
      return el("button", { type: "button", class: "quiet", disabled: next < 0 || next >= data.length, onclick: () => this.turn(next) }, text);
    };
    const last = Math.min(this.first + data.most, data.length);
    put(this.pager, data.length > data.most ? [more(-1, "\u2039 before"), ` tokens ${whole(this.first + 1)} to ${whole(last)} of ${whole(data.length)} `, more(1, "after \u203a")] : "");
    put(this.text, columns.pieces.map((piece, i) => el("span", { class: `t s${columns.state[i]}` }, visible(piece))));
    this.paint(this.quantity);
  }

  turn(first) {
    this.first = first;
    this.app.update(() => this.load());
  }

  // Colours the tokens that there are; none is made again.
  paint(quantity) {
    this.quantity = quantity;
    const values = this.data.columns[quantity] ?? [];
    const scale = QUANTITIES[quantity].scale(values);
    put(this.bar, bar(quantity, scale));
    [...this.text.children].forEach((token, i) => tint(token, quantity, scale, values[i] ?? null));
  }

  // ---------------------------------------------------------------- the figures of a token

  point(event) {
    const token = event.target.closest(".t");
    if (token) this.select([...this.text.children].indexOf(token));
  }

  move(event) {
    const last = this.text.children.length - 1;
    const now = this.at ?? -1;
    const moves = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: last };
    if (event.key === "Escape") this.leave();
    if (!(event.key in moves)) return;
    event.preventDefault();
    this.stay();
    this.select(Math.max(0, Math.min(last, moves[event.key])));
    this.text.children[this.at].scrollIntoView({ block: "nearest" });
  }

  // Who looks at a token keeps it: the newest step isn't followed any more.
  stay() {
    if (!this.stepper.follows) return;
    this.stepper.pin(this.stepper.step);
    this.remember();
  }

  click(event) {
    this.stay();
    this.point(event);
  }

  remember() {
    this.app.remember(this.name, "tokens", this.stepper.follows ? "latest" : this.stepper.step, this.place);
  }

  select(place) {
    this.text.children[this.at]?.classList.remove("at");
    const token = this.text.children[place];
    if (!token) return;
    this.at = place;
    token.classList.add("at");
    put(this.box, this.figures(place));
    this.box.hidden = false;
    const [around, area] = [token.getClientRects()[0] ?? token.getBoundingClientRect(), this.text.parentNode.getBoundingClientRect()];
    this.box.style.left = `${Math.max(0, Math.min(area.width - this.box.offsetWidth, around.left - area.left))}px`;
    this.box.style.top = `${around.bottom - area.top + 8}px`;
  }

  figures(place) {
    const { columns } = this.data;
    const value = (name) => columns[name]?.[place] ?? null;
    const pull = value("pull");
    const said = pull === null ? "" : pull > 0 ? ", pushed up" : pull < 0 ? ", pushed down" : "";
    const logp = value("logps");
    const rows = [
      ["token", `${whole(this.data.first + place + 1)}, id ${value("ids") ?? "\u2013"}`],
      ["log-prob", logp === null ? "\u2013" : `${number(logp)} (${number(100 * Math.exp(logp))}%)`],
      ["entropy", number(value("entropies"))],
      ["ratio", number(value("ratios"))],
      ["advantage", number(value("advantages"))],
      ["pull", number(pull) + said],
      ["state", this.states[value("state")] ?? "\u2013"],
    ];
    return [el("p", {}, JSON.stringify(columns.pieces[place])), el("dl", {}, rows.map(([name, text]) => [el("dt", {}, name), el("dd", {}, text)]))];
  }

  leave() {
    this.text.children[this.at]?.classList.remove("at");
    this.at = null;
    this.box.hidden = true;
  }
}

function title(told, i) {
  const reward = told.reward === null || told.reward === undefined ? "no reward" : `reward ${number(told.reward)}`;
  return `${i + 1}: group ${told.group + 1}, no. ${told.generation + 1}, ${reward}, ${whole(told.length)} tokens`;
}

function visible(piece) {
  if (piece === "") return "\u2205";
  return piece.replaceAll("\n", "\u23ce\n").replaceAll("\t", "\u21e5\t");
}
