/** As a guest may: at each moment at which others may look, the memory is another, until `running` settles. */
export async function whileChanging<T>(
  running: Promise<unknown>,
  values: readonly T[],
  fill: (value: T) => void,
): Promise<void> {
  let isOver = false;
  const over = running.finally(() => (isOver = true));
  over.catch(() => undefined);
  for (let turn = 1; !isOver; turn++) {
    fill(values[turn % values.length]!);
    // Microtasks alone would keep the machine from going on, and many of them between two of its steps hold those up.
    await (turn % 4 === 0 ? new Promise<void>((resolve) => setImmediate(resolve)) : undefined);
  }
  await over;
}
