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
  if (response.status === 401) throw new Unreachable("The server asks for its token: open the address that it has printed.");
  if (!response.ok) throw new Unreachable(`The server answered ${response.status}; trying again.`);
  return response.json();
}

async function answer(address) {
  try {
    return await fetch(address, { signal: AbortSignal.timeout(20000) });
  } catch {
    throw new Unreachable("The server doesn\u2019t answer; trying again.");
  }
}

// That there is no answer; the message is what the page says.
export class Unreachable extends Error {}

// What the server says can't be shown, and why.
export class Refused extends Error {}
