// Asks the server. Addresses are relative, so that the page works behind any forwarded port.

export async function ask(question, given = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(given)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== "") query.append(name, one);
    }
  }
  const response = await fetch(`api/${question}?${query}`, { signal: AbortSignal.timeout(20000) });
  if (response.status === 400) throw new Refused((await response.json()).error);
  if (!response.ok) throw new Error(`the server answered ${response.status}`);
  return response.json();
}

// What the server says can't be shown, and why.
export class Refused extends Error {}
