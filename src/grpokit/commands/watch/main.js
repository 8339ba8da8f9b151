// The page: which view is shown, and what is asked of the server while a run trains.

import { ask, Refused, Unreachable } from "./api.js";
import { Compare } from "./compare.js";
import { Completions } from "./completions.js";
import { el, put } from "./dom.js";
import { Overview } from "./overview.js";
import { address, read } from "./places.js";
import { Tokens } from "./tokens.js";

const EVERY = 1500; // milliseconds between two questions for changes
const AT_MOST = 6000; // the same where the server doesn't answer
const VIEWS = { overview: Overview, completions: Completions, tokens: Tokens };
const root = document.getElementById("view");
const state = { runs: [], version: "", view: null, key: "", failures: 0 };

// The run and the view that the address names; by default all runs, or the only one.
function place() {
  const { name, view, rest } = read(location.hash);
  if (name !== null) return { name, view: view in VIEWS ? view : "overview", rest };
  const only = view !== "compare" && state.runs.length === 1 ? state.runs[0].name : null;
  return { name: only, view: only === null ? "compare" : "overview", rest: [] };
}

async function show() {
  if (!state.version) return; // which runs there are isn't known yet
  const { name, view, rest } = place();
  const key = `${view} ${name}`;
  navigation(name, view);
  if (key !== state.key) {
    state.view?.close?.();
    state.key = key;
    put(root);
    root.dataset.view = view;
    state.view = name === null ? new Compare(root, app) : new VIEWS[view](root, name, app);
    window.scrollTo(0, 0);
  }
  await update(() => state.view.show(rest));
}

async function update(action) {
  try {
    await action();
    root.querySelector(":scope > .refused")?.remove();
  } catch (error) {
    if (error instanceof Unreachable) return unreachable(error);
    if (!(error instanceof Refused)) throw error;
    root.querySelector(":scope > .refused")?.remove();
    root.prepend(el("p", { class: "refused", role: "alert" }, error.message));
  }
}

function navigation(name, view) {
  const chooser = document.getElementById("chooser");
  const select = document.getElementById("run");
  const names = state.runs.map((run) => run.name);
  chooser.hidden = names.length < 2;
  const options = [["", "all runs"], ...names.map((each) => [each, each])];
  if (select.options.length !== options.length || options.some(([value], i) => select.options[i].value !== value)) {
    put(select, options.map(([value, text]) => el("option", { value }, text)));
  }
  select.value = name ?? "";
  const tabs = name === null ? [] : [["", "Overview"], ["completions", "Completions"], ["tokens", "Tokens"]];
  const shown = tabs.map(([key, title]) => {
    const current = (key || "overview") === view ? "page" : false;
    return el("li", {}, el("a", { href: address(name, key), "aria-current": current }, title));
  });
  put(document.getElementById("tabs"), shown);
  document.title = name === null ? "grpokit watch" : `${name} \u00b7 grpokit watch`;
}

function unreachable(error) {
  state.failures += 1;
  document.getElementById("connection").textContent = error.message;
  document.body.classList.add("stale");
}

function reached() {
  state.failures = 0;
  document.getElementById("connection").textContent = "";
  document.body.classList.remove("stale");
}

async function poll() {
  try {
    if (!document.hidden || !state.version) {
      const found = await ask("changes", { since: state.version });
      const wasAway = state.failures > 0;
      if (wasAway) reached();
      if (!found.same) await changed(found);
      if (wasAway) await show(); // it may have asked in vain
    }
  } catch (error) {
    if (!(error instanceof Unreachable)) throw error;
    unreachable(error);
  } finally {
    setTimeout(poll, Math.min(AT_MOST, EVERY * (1 + state.failures)));
  }
}

async function changed(found) {
  const first = !state.version;
  const before = new Map(state.runs.map((run) => [run.name, run]));
  state.runs = found.runs;
  state.version = found.version;
  const isSame = before.size === found.runs.length && found.runs.every((run) => before.has(run.name));
  if (first || !isSame) return show();
  await update(() => state.view.changed?.(found.runs, before));
}

const app = {
  runs: () => state.runs,
  run: (name) => state.runs.find((run) => run.name === name),
  // Puts the place into the address without a new entry in the history.
  remember: (...parts) => history.replaceState(null, "", address(...parts)),
  update,
};

addEventListener("hashchange", show);
document.getElementById("run").addEventListener("change", (event) => {
  const { view } = place();
  const name = event.target.value;
  location.hash = name ? address(name, view in VIEWS && view !== "overview" ? view : "") : "#/compare";
});
poll();
