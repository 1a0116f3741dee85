import { deferred } from '../base/async.js';
import { BlockError, toBlockError } from '../base/error.js';
import type { Graph } from '../block/graph.js';

/**
 * The life of an engine: open, and from close() on closed for everybody. What is under way when it closes is awaited,
 * what comes later is refused.
 */
export class Lifetime {
  #ending: Promise<void> | undefined;
  #isOver = false;
  readonly #ended = deferred();
  readonly #underWay = new Set<Promise<unknown>>();

  get isClosed(): boolean {
    return this.#ending !== undefined;
  }

  /** Resolves when the work of its end is done, well or not. */
  get ended(): Promise<void> {
    return this.#ended.promise;
  }

  /** Errors: kind closed. */
  assertOpen(): void {
    if (this.#ending) throw new BlockError('closed', 'The engine is closed');
  }

  /** Runs what the end must wait for. Errors: kind closed, and those of `work`. */
  async during<T>(work: () => Promise<T>): Promise<T> {
    this.assertOpen();
    const running = work();
    const settled = running.catch(() => undefined).then(() => void this.#underWay.delete(settled));
    this.#underWay.add(settled);
    return running;
  }

  /** Ends it by `work`, once; a later call has nothing to do, one that comes meanwhile hears of the same outcome. */
  end(work: () => Promise<void>): Promise<void> {
    if (this.#isOver) return Promise.resolve();
    this.#ending ??= this.#end(work);
    return this.#ending;
  }

  async #end(work: () => Promise<void>): Promise<void> {
    try {
      while (this.#underWay.size > 0) await Promise.all(this.#underWay);
      await work();
    } finally {
      this.#isOver = true;
      this.#ended.resolve();
    }
  }
}

/** Runs all steps, also after one has failed. Errors: the first. */
export async function runAll(steps: Iterable<() => Promise<void>>): Promise<void> {
  let failure: { error: unknown } | undefined;
  for (const step of steps) await step().catch((error: unknown) => void (failure ??= { error }));
  if (failure) throw toBlockError(failure.error);
}

/**
 * Takes away the backends that a program still has on nodes: their requests in flight end well, later ones are refused
 * (kind closed). Then flushes and closes all nodes. All is closed also when an error is thrown, the first that was met.
 */
export async function closeGraph(graph: Graph): Promise<void> {
  await runAll([() => takeBackends(graph), () => graph.closeAll()]);
}

async function takeBackends(graph: Graph): Promise<void> {
  const nodes = [...graph.backends].map(({ node }) => node);
  if (nodes.length === 0) return;
  await graph.drained(nodes, () =>
    graph.transaction((transaction) => {
      for (const { root } of graph.backends) if (root) transaction.detach(root);
    }),
  );
}
