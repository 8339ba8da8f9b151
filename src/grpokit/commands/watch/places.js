// What the part of the address behind # means: "#/run/demo/tokens/12/3" is a run, a view, and the view's own parts.

export function address(name, view = "", ...rest) {
  return ["#/run", encodeURIComponent(name), ...(view ? [view] : []), ...rest].join("/");
}

export function read(hash) {
  const [kind, name, view = "overview", ...rest] = hash.replace(/^#\/?/, "").split("/").map(decoded);
  return kind === "run" && name ? { name, view, rest } : { name: null, view: kind, rest: [] };
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // a stray % in an address that somebody typed
  }
}
