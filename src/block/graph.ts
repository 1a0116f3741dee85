import { assert } from '../base/assert.js';
import { AsyncMutex, Notifier, eachInTurn } from '../base/async.js';
import { CancelSignal } from '../base/cancel-signal.js';
import { BlockError, toBlockError } from '../base/error.js';
import { given } from '../base/given.js';
import { MAX_NODE_NAME_CHARS, READ_TABLES_BYTES } from '../base/limits.js';
import { MemoryBudget } from '../base/memory-budget.js';
import { descriptorNumber } from '../host/descriptor-number.js';
import type { Host } from '../host/host.js';
import { BlockBackend } from './backend.js';
import type { BackendProperties } from './backend-user.js';
import { DrainedSection } from './drain.js';
import type { DriverEvent } from './driver.js';
import type { Edge, EdgeParent } from './edge.js';
import { LayerMaps } from './layers/layer-maps.js';
import { Node } from './node.js';
import { ObjectRegistry } from './objects/object-registry.js';
import { GraphTransaction } from './transaction.js';

/** How long requests that nobody wants any more may take before they are given up. */
export const GRACE_MS = 800;
/** How often it is looked whether those that were given up are in flight where nobody else is any more. */
const LOOK_MS = 100;

/** Keeps outside what the graph is, so that it can be made again. */
export interface GraphKeeper {
  /** What the graph is at this moment, which may be a tentative one. */
  describe(): string;
  /**
   * Keeps a description durably. What it throws keeps the change from being made; what changes nothing fails only where it
   * `mustBeSure` that nothing else can be found.
   */
  keep(description: string, mustBeSure?: boolean): Promise<void>;
}

/**
 * All nodes, edges and backends of one engine. Every change goes through transaction(); drained() holds back the
 * requests that a change must not meet.
 */
export class Graph {
  readonly host: Host;
  /** What nodes and their users are given by an id: secrets, credentials, limits. */
  readonly objects: ObjectRegistry;
  /** See DriverContext. */
  readonly tableMemory = new MemoryBudget(READ_TABLES_BYTES);
  /** By name, in order of creation. */
  readonly nodes = new Map<string, Node>();
  readonly backends = new Set<BlockBackend>();
  /** The drives' by their ids, with a medium or without one. */
  readonly drives = new Map<string, BlockBackend>();
  /** Set by the composition root: what drivers report. */
  onDriverEvent: (node: Node, event: DriverEvent) => void = () => undefined;
  /** Told of lines that QEMU's drivers print on standard error: the programs print them. */
  onDriverLine: (line: string) => void = () => undefined;
  readonly layerMaps: LayerMaps;
  /** Told of every change before it is made. */
  keeper: GraphKeeper | undefined;
  readonly #mutex = new AsyncMutex();
  readonly #idle = new Notifier();
  readonly #closing = new Set<Node>();
  readonly #closed = new Notifier();
  readonly #sections = new Set<DrainedSection>();
  #generated = 0;
  #backendCount = 0;

  constructor(host: Host) {
    this.host = host;
    this.objects = new ObjectRegistry(host);
    this.layerMaps = new LayerMaps(host);
  }

  /** One that is open and in its place; from there on who uses it sees whether it is being closed. */
  find(name: string): Node | undefined {
    const node = this.nodes.get(name);
    return node && isInPlace(node) ? node : undefined;
  }

  /** Errors: kind not-found, in QEMU's words. */
  node(name: string): Node {
    const node = this.find(name);
    if (!node) throw new BlockError('not-found', `Failed to find node with node-name='${name}'`);
    return node;
  }

  /**
   * Those that users see, in order of creation: not what is being opened or on its way out, nor a job's filter out of its
   * place.
   */
  listed(): Node[] {
    return [...this.nodes.values()].filter((node) => isInPlace(node) && !node.isClosing);
  }

  /** Throws when a user may not give this name to a new node. */
  checkNewName(name: string): void {
    if (!/^[A-Za-z][A-Za-z0-9_.-]*$/.test(name))
      throw new BlockError('invalid', `Invalid node-name: '${name}'`);
    if (name.length > MAX_NODE_NAME_CHARS) throw new BlockError('invalid', 'Node name too long');
    if (this.drives.has(name))
      throw new BlockError('exists', `node-name=${name} is conflicting with a device id`);
    if (this.nodes.has(name)) throw new BlockError('exists', `Duplicate nodes with node-name='${name}'`);
  }

  /**
   * The descriptor that an option means; a program says that clients name what they have passed. Errors: invalid, not-found,
   * unsupported; in QEMU's words.
   */
  descriptorOf: (text: string) => number = descriptorNumber;

  /** A name that no user can choose, such as '#block153'. */
  generateName(): string {
    for (;;) {
      const name = `#block${this.#generated++}${String(this.host.random.below(100)).padStart(2, '0')}`;
      if (!this.nodes.has(name)) return name;
    }
  }

  createBackend(properties: BackendProperties): BlockBackend {
    return new BlockBackend(properties, this.host, this.#idle, this.#backendCount++);
  }

  /**
   * Changes the graph, or throws and leaves it as it was. `build` lists the steps (synchronously); then permissions
   * are checked on the tentative graph, drivers prepare (may await), and all is committed without a wait.
   */
  transaction(build: (transaction: GraphTransaction) => void): Promise<void> {
    return this.#mutex.run(async () => {
      const transaction = new GraphTransaction(this);
      build(transaction);
      await transaction.run();
    });
  }

  /** Whether transaction() may be had, as far as the graph says: nothing is changed and no driver asked. Errors: its. */
  rehearse(build: (transaction: GraphTransaction) => void): Promise<void> {
    return this.#mutex.run(async () => {
      const transaction = new GraphTransaction(this);
      build(transaction);
      transaction.rehearse();
    });
  }

  /** Runs while no transaction does. */
  betweenChanges<T>(body: () => Promise<T>): Promise<T> {
    return this.#mutex.run(body);
  }

  /** For transactions: edges have changed. Who has come to a drained part is quiesced before anything else happens. */
  edgesChanged(): void {
    if (this.#sections.size === 0) return;
    for (const section of this.#sections) section.update();
    this.#assertBalanced();
  }

  /**
   * Runs `body` while no request that can reach `nodes` is in flight and none can start, whoever comes meanwhile.
   * Backends of `owner` (the job that asks) go on. Guests see a pause, never an error. Errors: ECANCELED when `signal` is
   * cancelled before the body runs.
   */
  async drained<T>(
    nodes: Iterable<Node>,
    body: () => Promise<T> | T,
    owner?: object,
    signal?: CancelSignal,
  ): Promise<T> {
    const section = new DrainedSection(nodes, owner, () => this.notifyIdle());
    this.#sections.add(section);
    try {
      do await this.#idle.until(() => section.isQuiet, signal);
      while (!section.isQuiet);
      section.begin();
      return await body();
    } finally {
      this.#sections.delete(section);
      section.end();
      this.#assertBalanced();
    }
  }

  /**
   * drained() for a command whose arguments `check` has looked at. What it throws is told within a second, though requests
   * that hang keep others from coming to rest; else the body says what is wrong then.
   */
  async drainedUnless<T>(
    check: () => void,
    nodes: Iterable<Node>,
    body: () => Promise<T> | T,
    owner?: object,
  ): Promise<T> {
    const refusal = errorOf(check);
    if (!refusal) return this.drained(nodes, body, owner);
    const done = await this.#drainedSoon(nodes, body, owner);
    if (!done) throw refusal.error;
    return done.value;
  }

  /**
   * drained() of all nodes in use, for a command that changes `needed`. Where requests that hang keep others from coming to
   * rest within a second, `check` looks at its arguments, and only what is needed is drained.
   */
  async drainedOrOnly<T>(
    needed: () => Iterable<Node>,
    check: () => void,
    body: () => Promise<T> | T,
  ): Promise<T> {
    const done = await this.#drainedSoon(this.nodesInUse(), body);
    if (done) return done.value;
    check();
    return this.drained(needed(), body);
  }

  /** drained() that is given up after a second in which not all came to rest, with nothing done: undefined. */
  async #drainedSoon<T>(
    nodes: Iterable<Node>,
    body: () => Promise<T> | T,
    owner?: object,
  ): Promise<{ value: T } | undefined> {
    const signal = new CancelSignal();
    const timer = this.host.clock.setTimer(GRACE_MS, () => signal.cancel());
    const begun = (): Promise<T> | T => {
      timer.cancel();
      return body();
    };
    try {
      return { value: await this.drained(nodes, begun, owner, signal) };
    } catch (error) {
      if (!signal.isCancelled) throw error;
      return undefined;
    } finally {
      timer.cancel();
    }
  }

  /** Every node and backend is quiesced by just the sections that it is in. */
  #assertBalanced(): void {
    const sections = [...this.#sections];
    for (const member of [...this.nodes.values(), ...this.backends]) {
      const count = sections.filter((section) => section.has(member)).length;
      assert(member.quiesceCount === count, () => `unbalanced drain of ${member.describe()}`);
    }
  }

  /** All nodes but those that only jobs reach which copy to them: what is in flight there may take long. */
  *nodesInUse(): Generator<Node> {
    const isOnlyCopied = (node: Node): boolean =>
      node.parents.size > 0 &&
      (node.isCopy ||
        [...node.parents].every(({ parent }) => parent instanceof Node && isOnlyCopied(parent)));
    for (const node of this.nodes.values()) if (!isOnlyCopied(node)) yield node;
  }

  /** An owner whose isBusy() may have changed calls this. */
  notifyIdle(): void {
    this.#idle.notify();
  }

  /**
   * Closes those of `candidates` that nothing holds any more (no parents, not the user's), and what only they held.
   * Only the caller's own: a node that another command has opened and not attached yet is nobody's to close.
   */
  async collect(candidates: Iterable<Node>): Promise<void> {
    const close = async (node: Node): Promise<void> => {
      if (await this.#claim(node)) await this.#close(node);
    };
    await eachInTurn([...candidates].map((node) => () => close(node)));
  }

  /** The same for those who ask no more than that the nodes be gone: whether the last flush did well, nobody hears. */
  async release(candidates: Iterable<Node>): Promise<void> {
    for (const node of candidates) await this.collect([node]).catch(() => undefined);
  }

  /** Closes all nodes that nobody uses, and waits for those that others are closing. Errors: the first that was met. */
  async closeAll(): Promise<void> {
    let failure: { error: unknown } | undefined;
    const keepFirst = (error: unknown): void => void (failure ??= { error });
    for (const node of this.nodes.values()) node.monitorOwned = false;
    for (;;) {
      for (const node of [...this.nodes.values()])
        await (node.isCopy ? this.release([node]) : this.collect([node])).catch(keepFirst);
      if (this.#closing.size === 0) break;
      await this.#closed.wait();
    }
    if (failure) throw failure.error;
  }

  /** Whether nothing holds a node; from then on nothing may. No transaction is under way that gives it a parent. */
  #claim(node: Node): Promise<boolean> {
    return this.#mutex.run(async () => {
      // A job whose filter lost its parents still works below it, and takes it out at its end.
      const isFrozen = ({ frozen, frozenByParent }: Edge): boolean => frozen > frozenByParent;
      const isHeld = node.isBlocked || [...node.children.values()].some(isFrozen);
      const isOrphan = node.parents.size === 0 && !node.monitorOwned && !node.isClosing && !isHeld;
      if (!isOrphan || this.nodes.get(node.name) !== node) return false;
      this.#beginClosing(node);
      return true;
    });
  }

  /**
   * Ends what is in flight to a node, and what is in flight to the nodes below that only it uses: they are of no use any
   * more. A node that others than `users` can reach goes on.
   */
  cancelInFlight(top: Node, users: Iterable<BlockBackend> = []): void {
    const own = new Set<EdgeParent>(users);
    const visit = (node: Node): void => {
      for (const { parent } of node.parents) if (!own.has(parent)) return;
      own.add(node);
      if (node.isOpen) node.instance.cancelInFlight?.();
      for (const edge of node.children.values()) visit(edge.node);
    };
    visit(top);
  }

  /**
   * Whoever has requests in flight through `backend` waits no longer, by its signal. What they are in flight to ends too
   * where only the backend's owner uses it, now or later.
   */
  giveUp(backend: BlockBackend): void {
    assert(backend.signal, () => `${backend.description} has no signal`);
    backend.signal.cancel();
    const look = (): void => {
      const { root } = backend;
      if (!root || !backend.hasRequests) return;
      const own = [...this.backends].filter(({ owner }) => owner === backend.owner);
      this.cancelInFlight(root.node, own);
      this.host.clock.setTimer(LOOK_MS, look);
    };
    look();
  }

  /**
   * Detaches a backend whose requests were given up, when they have ended: until then what they were to write may come to
   * be, and its permissions tell others so.
   */
  async retire(backend: BlockBackend): Promise<void> {
    await backend.untilUnused();
    const { root } = backend;
    if (!root) return;
    await this.transaction((transaction) => {
      if (backend.root) transaction.detach(backend.root);
    });
    await this.release([root.node]);
  }

  /**
   * Flushes, closes and removes a node without parents, then what only it held. All of it is gone also when an error
   * is thrown, which is the first that was met: what was written may not be durable.
   */
  async closeNode(node: Node): Promise<void> {
    assert(node.parents.size === 0, () => `closing node '${node.name}' which is in use`);
    assert(!node.isClosing, () => `closing node '${node.name}' twice`);
    this.#beginClosing(node);
    await this.#close(node);
  }

  #beginClosing(node: Node): void {
    node.isClosing = true;
    this.#closing.add(node);
  }

  async #close(node: Node): Promise<void> {
    try {
      await this.#closeClaimed(node);
    } finally {
      this.#closing.delete(node);
      this.#closed.notify();
    }
  }

  async #closeClaimed(node: Node): Promise<void> {
    let failure: unknown;
    let path: string | undefined;
    const keepFirst = (error: unknown): void => void (failure ??= error);
    const giveUp = (): void => this.cancelInFlight(node);
    const timer = node.isCopy ? this.host.clock.setTimer(GRACE_MS, giveUp) : undefined;
    if (node.isOpen)
      await flushAndClose(node).catch((error: unknown) => {
        keepFirst(error);
        // As it is with its children, which go.
        path = node.filename;
      });
    timer?.cancel();
    // As they are now: a job may have put its filter between, or taken it out, while the node was flushed.
    let below: Node[] = [];
    await this.transaction((transaction) => {
      below = [...node.children.values()].map((edge) => edge.node);
      for (const edge of node.children.values()) transaction.detach(edge);
    });
    this.nodes.delete(node.name);
    for (const child of below) if (child.parents.size === 0) child.isCopy ||= node.isCopy;
    for (const child of below) await this.collect([child]).catch(keepFirst);
    if (failure !== undefined) throw whileClosing(failure, node.name, path);
  }
}

/** Not what is being opened, nor a job's filter that was taken out. */
function isInPlace(node: Node): boolean {
  return node.isOpen && !(node.isFilter && node.children.size === 0);
}

function errorOf(check: () => void): { error: unknown } | undefined {
  try {
    check();
    return undefined;
  } catch (error) {
    return { error };
  }
}

/** The same error, which says whose image may lack what was written. */
function whileClosing(failure: unknown, node: string, ownPath: string | undefined): BlockError {
  const cause = toBlockError(failure);
  const { kind, message, errno, path } = cause;
  return new BlockError(kind, message, { ...given({ errno, path: ownPath ?? path }), node, cause });
}

/**
 * A filter holds nothing of its own, and a job's may be out of its place already. Errors: those of a node that was changed,
 * or has bitmaps to store; of another nothing can be lost.
 */
async function flushAndClose(node: Node): Promise<void> {
  const hasBitmaps = node.dirtyBitmaps.some(({ persistent, readOnly }) => persistent && !readOnly);
  const wasChanged = node.wasChanged || hasBitmaps;
  try {
    try {
      if (node.isWritable && !node.isFilter) await node.io.flush();
    } finally {
      await closeWithSide(node);
    }
  } catch (error) {
    if (wasChanged) throw error;
  }
}

/** The side file says that it is right when all is in the image. */
async function closeWithSide(node: Node): Promise<void> {
  const { side } = node;
  if (!side) return node.close();
  let isWhole = false;
  try {
    await side.end();
    isWhole = true;
  } finally {
    await node
      .close()
      .catch((error: unknown) => {
        isWhole = false;
        throw error;
      })
      .finally(() => side.close(isWhole));
  }
}
