// Colours of tokens: how strong a value's colour is, and the bar that explains it.

import { el, number } from "./dom.js";

const MOST = 62; // percent of the colour behind a token at the end of the scale: the text stays readable

export const QUANTITIES = {
  logps: { title: "log-prob", ends: ["unlikely", "certain"], scale: () => ({ low: -6, high: 0, kind: "falling" }) },
  entropies: { title: "entropy", ends: ["certain", "open"], scale: (values) => ({ low: 0, high: largest(values, 1), kind: "rising" }) },
  ratios: { title: "ratio", ends: ["less likely now", "likelier now"], scale: (values) => around(values.map((value) => (value > 0 ? Math.log(value) : null)), 0.05, "log") },
  advantages: { title: "advantage", ends: ["worse", "better"], scale: (values) => around(values, 0.1, "linear") },
  pull: { title: "pull", ends: ["pushed down", "pushed up"], scale: (values) => around(values, 1e-9, "linear") },
};

// The size that 98 of 100 values stay below, so that one outlier doesn't make all others pale.
function largest(values, least) {
  const sizes = values.filter((value) => value !== null && value !== 0).map(Math.abs).sort((a, b) => a - b);
  return sizes.length ? Math.max(least, sizes[Math.floor(0.98 * (sizes.length - 1))]) : least;
}

function around(values, least, kind) {
  const most = largest(values, least);
  return { low: -most, high: most, kind };
}

export function tint(token, quantity, scale, value) {
  token.classList.remove("hot-up", "hot-down", "hot-warm");
  token.style.removeProperty("--heat");
  if (value === null) return;
  const [css, share] = heat(scale, value);
  if (!css) return;
  token.classList.add(css);
  token.style.setProperty("--heat", `${(MOST * Math.max(0, Math.min(1, share))).toFixed(1)}%`);
}

function heat({ low, high, kind }, value) {
  if (kind === "falling") return ["hot-down", value / low];
  if (kind === "rising") return ["hot-warm", value / high];
  const size = kind === "log" ? Math.log(Math.max(value, 1e-30)) : value;
  return size > 0 ? ["hot-up", size / high] : size < 0 ? ["hot-down", size / low] : ["", 0];
}

export function bar(quantity, scale) {
  const [low, high] = scale.kind === "log" ? [Math.exp(scale.low), Math.exp(scale.high)] : [scale.low, scale.high];
  const { ends } = QUANTITIES[quantity];
  return [
    el("span", {}, `${ends[0]} ${number(low)}`),
    el("i", { class: `ramp ${scale.kind}`, "aria-hidden": "true" }),
    el("span", {}, `${number(high)} ${ends[1]}`),
  ];
}
