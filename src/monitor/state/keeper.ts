import { BlockError } from '../../base/error.js';
import type { GraphKeeper } from '../../block/graph.js';
import { assertNoPlainSecret } from '../../block/plain-secrets.js';
import type { EngineState } from '../../schema/state.js';
import { formatJson } from '../../wire/qmp/json-format.js';
import type { Parts } from '../parts.js';
import { type Described, describeEngine, type ProgramState } from './describe.js';
import type { StateStore } from './store.js';

type Kept = Described & Parts<'hub' | 'host' | 'onEvent' | 'warn'>;

/**
 * Keeps in a folder what a daemon is: before a change of the graph can be used, before a command is answered, and soon
 * after what happens by itself. One state is written at a time, and none while the graph changes.
 */
export class StateKeeper implements GraphKeeper {
  readonly #store: StateStore;
  readonly #engine: Kept;
  readonly #program: ProgramState;
  /** What the daemon is, as it was kept last; undefined: nothing was. */
  #kept: string | undefined;
  /** Nothing else can be on the disk. */
  #isSure = false;
  #isScheduled = false;

  private constructor(store: StateStore, engine: Kept, program: ProgramState) {
    this.#store = store;
    this.#engine = engine;
    this.#program = program;
  }

  /**
   * Keeps the state from now on. `isKept`: the engine was made of the state in the folder, which makes it again, so that it
   * serves also where nothing can be written, and that is told. Errors: else those of writing.
   */
  static async begin(store: StateStore, engine: Kept, program: ProgramState, isKept: boolean): Promise<void> {
    const keeper = new StateKeeper(store, engine, program);
    await engine.graph.betweenChanges(async () => {
      engine.graph.keeper = keeper;
      engine.hub.onDone = (name) => keeper.#done(name);
      engine.onEvent(() => keeper.#schedule());
      void keeper.#follow(() => engine.runState.change());
      void keeper.#follow(() => engine.moves.destination.answered());
      const description = keeper.describe();
      if (isKept) keeper.#kept = description;
      await keeper.keep(description);
    });
  }

  /** Errors: invalid for a node with a secret among its options. */
  describe(): string {
    const state = describeEngine(this.#engine, this.#program);
    for (const { name } of state.nodes) assertNoPlainSecret(this.#engine.graph.node(name), 'the state');
    return stateText(state);
  }

  async keep(description: string, mustBeSure = false): Promise<void> {
    const isChange = description !== this.#kept;
    if (!isChange && this.#isSure) return;
    try {
      this.#isSure = false;
      await this.#store.write(description);
      this.#kept = description;
      this.#isSure = true;
    } catch (error) {
      if (!isChange && !mustBeSure) return this.#tell(error);
      if (isChange && this.#kept !== undefined) await this.#keepAgain(this.#kept);
      throw error;
    }
  }

  /** A change is not made: what may be there of it must not be found. */
  async #keepAgain(description: string): Promise<void> {
    try {
      await this.#store.write(description);
      this.#isSure = true;
    } catch (error) {
      this.#tell(error);
    }
  }

  #tell(error: unknown): void {
    this.#engine.warn(`warning: ${error instanceof Error ? error.message : String(error)}`);
  }

  /** A daemon that ends leaves its state as it is (Graph.keeper is unset). */
  #isOver(): boolean {
    return this.#engine.graph.keeper !== this;
  }

  async #look(): Promise<void> {
    await this.#engine.graph.betweenChanges(async () => {
      if (!this.#isOver()) await this.keep(this.describe());
    });
  }

  async #done(name: string): Promise<void> {
    if (name.startsWith('query-') || this.#isOver()) return;
    try {
      await this.#look();
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      const text = `${name} was done, and would not be after a crash: ${error.message}`;
      throw new BlockError(error.kind, text, { cause: error });
    }
  }

  /** Not everything that happens by itself is an event. */
  async #follow(change: () => Promise<void>): Promise<void> {
    while (!this.#isOver()) {
      await change();
      this.#schedule();
    }
  }

  #schedule(): void {
    if (this.#isScheduled || this.#isOver()) return;
    this.#isScheduled = true;
    this.#engine.host.clock.defer(() => {
      this.#isScheduled = false;
      this.#look().catch((error: unknown) => this.#tell(error));
    });
  }
}

/** Made before each change of the graph and each answer: of a thousand nodes in 1 ms, where formatJson takes 20. */
function stateText(state: EngineState): string {
  try {
    return JSON.stringify(state);
  } catch {
    // An option beyond 2^53.
    return formatJson(state);
  }
}
