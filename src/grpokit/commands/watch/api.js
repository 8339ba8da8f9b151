// Asks the server. Addresses are relative, so that the page works behind any forwarded port.

export async function ask(question, given = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(given)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== "") query.append(name, one);
    }
  }
  const response = await answer(`api/${question}?${query}`);
  if (response.status === 400) throw new Refused((await response.json()).error);
  if (!response.ok) throw new Unreachable(`the server answered ${response.status}`);
  return response.json();
}

async function answer(address) {
  try {
    return await fetch(address, { signal: AbortSignal.timeout(20000) });
  } catch (error) {
    throw new Unreachable(error.message);
  }
}

export class Unreachable extends Error {}

// What the server says can't be shown, and why.
export class Refused extends Error {}
