// Chooses a step: a slider for the arrow keys, two buttons, and "latest", which follows the run.

import { el, whole } from "./dom.js";

export class Stepper {
  constructor(onchange) {
    this.steps = [];
    this.follows = true;
    this.onchange = onchange;
    this.slider = el("input", { type: "range", min: 0, max: 0, value: 0, "aria-label": "step", oninput: () => this.choose(Number(this.slider.value)) });
    this.back = el("button", { type: "button", class: "quiet", "aria-label": "step before", onclick: () => this.move(-1) }, "\u2039");
    this.on = el("button", { type: "button", class: "quiet", "aria-label": "step after", onclick: () => this.move(1) }, "\u203a");
    this.label = el("output", { class: "step" });
    this.latest = el("input", { type: "checkbox", checked: true, onchange: () => this.follow(this.latest.checked) });
    this.element = el("div", { class: "stepper" }, this.back, this.slider, this.on, this.label, el("label", {}, this.latest, " latest"));
  }

  // Begins at the step that an address names.
  start(step = "latest") {
    this.follows = step === "latest";
    if (!this.follows) this.step = Number(step);
  }

  // The step to ask for: null is the newest one.
  get wanted() {
    return this.follows ? null : this.step;
  }

  move(by) {
    const now = Number(this.slider.value);
    this.choose(Math.max(0, Math.min(this.steps.length - 1, now + by)));
  }

  choose(place) {
    this.pin(this.steps[place]);
    this.onchange();
  }

  pin(step) {
    this.follows = false;
    this.latest.checked = false;
    this.update(this.steps, step);
  }

  follow(on) {
    this.follows = on;
    this.onchange();
  }

  update(steps, step) {
    this.steps = steps;
    this.step = step;
    this.latest.checked = this.follows;
    const place = Math.max(0, steps.indexOf(step));
    this.slider.max = Math.max(0, steps.length - 1);
    this.slider.value = place;
    this.slider.disabled = steps.length < 2;
    this.slider.setAttribute("aria-valuetext", step ? `step ${step}` : "none");
    this.back.disabled = place === 0;
    this.on.disabled = place >= steps.length - 1;
    const last = steps.length ? ` of ${whole(steps[steps.length - 1])}` : "";
    this.label.textContent = step ? `step ${whole(step)}${last}` : "";
  }
}
