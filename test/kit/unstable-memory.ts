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
    // Microtasks alone would keep the machine from going on.
    await (turn % 64 === 0 ? new Promise<void>((resolve) => setImmediate(resolve)) : undefined);
  }
  await over;
}
