// Makes elements, and writes numbers for people. Text is always text: nothing that a run has written becomes HTML.

export function el(name, given = {}, ...children) {
  return fill(document.createElement(name), given, children);
}

export function svg(name, given = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), given, children);
}

function fill(element, given, children) {
  for (const [name, value] of Object.entries(given)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function put(element, ...children) {
  element.replaceChildren();
  return fill(element, {}, children);
}

const MINUS = "\u2212";

// 0.967, 12.3, 1,234, 1.2e-6: four digits of anything
export function number(value) {
  if (value === null || value === undefined) return "\u2013";
  const size = Math.abs(value);
  let text;
  if (size !== 0 && (size < 1e-4 || size >= 1e7)) text = value.toExponential(2).replace("e+", "e");
  else if (size >= 1000) text = Math.round(value).toLocaleString("en");
  else text = String(Number(value.toPrecision(4)));
  return text.replaceAll("-", MINUS);
}

export function signed(value) {
  return (value > 0 ? "+" : "") + number(value);
}

export function percent(value) {
  return value === null ? "\u2013" : `${number(100 * value)}%`;
}

export function whole(value) {
  return value === null || value === undefined ? "\u2013" : Math.round(value).toLocaleString("en");
}

// 37 s, 12 min 34 s, 3 h 20 min, 2 d 4 h
export function seconds(value) {
  if (value < 10) return `${Number(value.toPrecision(2))} s`;
  const all = Math.round(value);
  if (all < 60) return `${all} s`;
  if (all < 3600) return `${Math.floor(all / 60)} min ${all % 60} s`;
  const minutes = Math.round(value / 60);
  if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return `${Math.floor(minutes / 1440)} d ${Math.floor((minutes % 1440) / 60)} h`;
}

export function gib(bytes) {
  return `${number(bytes / 2 ** 30)} GiB`;
}

// Runs `action` once, when no call came for a moment.
export function later(action, wait = 200) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(action, wait);
  };
}
