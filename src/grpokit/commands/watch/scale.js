// Scales, ticks and rolling means of charts.

export function place(scale, value) {
  const { low, high, from, to, log } = scale;
  const share = log ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
  return from + share * (to - from);
}

// A round distance of about `count` ticks between two values.
export function tickStep(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
}

export function linearTicks(low, high, step) {
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

// The range from the tick below the lowest value to the one above the highest.
export function widened(low, high, step) {
  return [Math.floor(low / step + 1e-9) * step, Math.ceil(high / step - 1e-9) * step];
}

// Powers of ten, with 2 and 5 between them where there are few.
export function logTicks(low, high) {
  const few = Math.log10(high / low) < 2;
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const factor of few ? [1, 2, 5] : [1]) {
      const tick = factor * 10 ** power;
      if (tick >= low && tick <= high) ticks.push(tick);
    }
  }
  return ticks.length > 1 ? ticks : [low, high];
}

// The place of the value in a rising list that is nearest to `wanted`.
export function nearest(values, wanted) {
  let low = 0;
  let high = values.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (values[middle] <= wanted) low = middle;
    else high = middle;
  }
  return Math.abs(values[high] - wanted) < Math.abs(values[low] - wanted) ? high : low;
}

// The (odd) window of the rolling mean over so many points; 1 where none is drawn.
export function trendWindow(points) {
  return points < 30 ? 1 : Math.max(5, Math.floor(points / 15) | 1);
}

// A centred rolling mean, whose window shrinks towards the ends to no less than a third.
export function smooth(values, window) {
  if (window === 1) return values;
  const half = Math.floor(window / 2);
  const last = values.length - 1;
  const sums = [0];
  for (const value of values) sums.push(sums[sums.length - 1] + value);
  return values.map((_, i) => {
    const reach = Math.min(half, Math.max(Math.floor(half / 3), Math.min(i, last - i)));
    const [from, to] = [Math.max(0, i - reach), Math.min(last, i + reach)];
    return (sums[to + 1] - sums[from]) / (to + 1 - from);
  });
}
