// How a run is getting on: a word, a bar, and the time that is left.

import { el, number, seconds, whole } from "./dom.js";

export function statusLine(run) {
  const parts = [badge(run)];
  if (run.text !== run.state) parts.push(el("span", { class: "said" }, run.text));
  if (run.maxSteps) {
    parts.push(el("progress", { max: run.maxSteps, value: Math.min(run.step, run.maxSteps), "aria-label": "steps done" }));
    parts.push(el("span", { class: "steps" }, `step ${whole(run.step)} of ${whole(run.maxSteps)}`));
  } else if (run.step) {
    parts.push(el("span", { class: "steps" }, `step ${whole(run.step)}`));
  }
  const left = timeLeft(run);
  if (left) parts.push(el("span", { class: "left" }, left));
  if (run.stepSeconds) parts.push(el("span", {}, `${seconds(run.stepSeconds)} a step`));
  return el("p", { class: "status" }, parts);
}

export function badge(run) {
  return el("b", { class: `badge ${run.state}` }, run.state);
}

export function timeLeft(run) {
  return run.state === "running" && run.secondsLeft !== null && run.secondsLeft > 0 ? `about ${seconds(run.secondsLeft)} left` : "";
}

export function reward(run) {
  return run.reward === null ? "\u2013" : number(run.reward);
}
