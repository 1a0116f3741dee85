import type { AsyncMutex } from '../base/async.js';
import { CancelSignal } from '../base/cancel-signal.js';
import { BlockError } from '../base/error.js';
import { ALL_PERMISSIONS, hasPermission, Permission } from '../block/permissions.js';
import {
  type BackingReference,
  backingReferenceOf,
  changeBackingReference,
} from '../block/backing-reference.js';
import type { BlockBackend } from '../block/backend.js';
import type { BackendProperties } from '../block/backend-user.js';
import type { ChangeGate } from '../block/change-gate.js';
import type { DirtyBitmap } from '../block/dirty-bitmap.js';
import type { DriverDescription } from '../block/driver.js';
import type { Edge, EdgeParent } from '../block/edge.js';
import { GRACE_MS, type Graph } from '../block/graph.js';
import { beganWritable, endWritable, isMeantReadOnly } from '../block/lent-writable.js';
import { PASSING_MODES } from '../block/modes.js';
import { Node } from '../block/node.js';
import type { Opener } from '../block/open.js';
import type { GraphTransaction } from '../block/transaction.js';
import { PassThrough } from '../drivers/pass-through/pass-through.js';
import type { Job } from './job.js';

export { ALL_PERMISSIONS, hasPermission, Permission };

export interface JobSurroundings {
  readonly graph: Graph;
  readonly opener: Opener;
  /** Jobs change the graph one at a time. */
  readonly changes: AsyncMutex;
  /** What persisted jobs lacked that have failed here, and what was written since, by their journals' paths. */
  readonly abandoned: Map<string, { readonly node: Node; readonly dirty: DirtyBitmap }>;
  /** Jobs find out whether they may have their place, and throw Rehearsed when they may. */
  readonly isRehearsal?: boolean;
}

/** A node that a job reads, writes, or keeps others from. */
interface Use {
  backend: BlockBackend;
  role: string;
  node: Node;
  /** It comes with the filter. */
  isOfFilter: boolean;
}

interface InsertOptions {
  before?: (transaction: GraphTransaction) => void;
  keep?: (edge: Edge) => boolean;
  wording?: { create: string; replace: string };
}

/** The job may have its place in the graph; nothing was changed. */
export class Rehearsed extends Error {}

const REHEARSAL_NAME = '#dry-run';

/** How QEMU words errors of putting in those filters that it makes as other nodes are made. */
export const AS_NODE = { create: 'Could not create node: ', replace: 'Could not replace node: ' };

export function creatingNode<T>(body: () => T): T {
  try {
    return body();
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw new BlockError(error.kind, `${AS_NODE.create}${error.message}`, { cause: error });
  }
}

/** A job's place in the graph: its filter, its backends, the links and nodes that others must leave alone. */
export class JobPlace {
  readonly job: Job;
  readonly #surroundings: JobSurroundings;
  readonly #backends: BlockBackend[] = [];
  /** What insert() attaches. */
  readonly #uses: Use[] = [];
  readonly #frozen: Edge[] = [];
  readonly #held: Node[] = [];
  #unblock: Array<() => void> = [];
  readonly #reopened: Array<{ node: Node; readOnly: boolean }> = [];
  readonly filter: Node;
  readonly passThrough: PassThrough;
  readonly source: Node;
  #removed = true;
  #filterFits = false;
  #jobFits = false;
  #copy: BlockBackend | undefined;
  /** What the filter showed last: layers may have come between it and the source. */
  #shown: Node;

  constructor(
    job: Job,
    surroundings: JobSurroundings,
    driver: DriverDescription,
    filterNodeName: string | undefined,
    source: Node,
  ) {
    this.job = job;
    this.#surroundings = surroundings;
    this.source = source;
    this.#shown = source;
    const { graph } = surroundings;
    if (filterNodeName !== undefined) graph.checkNewName(filterNodeName);
    const filter = new Node({
      name:
        filterNodeName ?? job.from?.filterName ?? (this.isRehearsal ? REHEARSAL_NAME : graph.generateName()),
      driver,
      readOnly: source.readOnly,
      // What the source is not to see, the job need not see either.
      modes: { ...PASSING_MODES, discard: source.modes.discard },
      monitorOwned: false,
      implicit: filterNodeName === undefined && driver.isAlwaysShown !== true,
    });
    this.passThrough = new PassThrough(() => filter.child('file'));
    filter.opened(this.passThrough);
    filter.filterOwner = this;
    this.filter = filter;
  }

  get graph(): Graph {
    return this.#surroundings.graph;
  }

  get opener(): Opener {
    return this.#surroundings.opener;
  }

  get isRehearsal(): boolean {
    return this.#surroundings.isRehearsal === true;
  }

  get isInserted(): boolean {
    return !this.#removed;
  }

  /** That the job uses, and keeps others from. */
  get nodes(): Node[] {
    return this.#uses.map(({ node }) => node);
  }

  /** Nothing but other jobs' filters lies between its filter and its source. */
  get isAtItsSource(): boolean {
    let at = this.filter;
    while (at.filterOwner !== undefined && at.filtered && at !== this.source) at = at.filtered.node;
    return at === this.source;
  }

  /** Users of the source that came to it past the filter. */
  get pastUsers(): Edge[] {
    return [...this.source.parents].filter(({ parent }) =>
      parent instanceof Node ? parent.filterOwner === undefined : !(parent.owner instanceof JobPlace),
    );
  }

  /** Whether insert() came so far that the graph has room for the filter, if not for the job. */
  get filterFits(): boolean {
    return this.#filterFits;
  }

  /** Whether insert() came so far that the graph has room for all of it: what fails then is an image's reopening. */
  get jobFits(): boolean {
    return this.#jobFits;
  }

  /** What the job reads or writes a node through, from insert() on. */
  backend(node: Node, perm: number, shared: number): BlockBackend {
    const description = 'an unnamed block device';
    return this.#use('root', node, { description, perm, shared, user: this.job.pace.backendUser });
  }

  /** The same as a child of the job's filter, which conflicts then name. */
  filterChild(role: string, node: Node, perm: number, shared: number): BlockBackend {
    const description = this.filter.describe();
    const isUser = false;
    const { backendUser: user } = this.job.pace;
    const backend = this.#use(role, node, { description, perm, shared, user, isUser }, true);
    this.filter.uses.add(backend);
    return backend;
  }

  /**
   * A node that the job's work is about, in a role that conflicts name: until the job ends others are kept from what
   * it does not share there, and no other operation may begin at the node.
   */
  hold(role: string, node: Node, perm: number, shared: number): void {
    const description = `${this.job.type} job '${this.job.id}'`;
    this.#use(role, node, { description, perm, shared, isUser: false });
    this.#held.push(node);
  }

  #use(role: string, node: Node, properties: BackendProperties, isOfFilter = false): BlockBackend {
    const backend = this.graph.createBackend({ ...properties, queuesWhenDrained: false, owner: this });
    this.#backends.push(backend);
    this.job.pace.uses(backend);
    this.#uses.push({ backend, role, node, isOfFilter });
    return backend;
  }

  /**
   * Puts the filter above the source (which must be ours: kind permission) for all of its parents but those that `keep`
   * names, attaches what the job uses and holds, in one transaction; `before` lists what comes first. The caller holds a
   * drained section.
   */
  async insert({
    before = () => undefined,
    keep = () => false,
    wording = { create: '', replace: '' },
  }: InsertOptions = {}): Promise<void> {
    const { filter, source, job } = this;
    const build = (transaction: GraphTransaction): void => {
      if (source.activity === 'inactive') {
        const text = `${wording.create}Block node is read-only`;
        throw new BlockError('permission', text, { node: source.name, errno: 'EPERM' });
      }
      before(transaction);
      transaction.then(wording.create);
      transaction.add(filter);
      transaction.attach(filter, 'file', source);
      this.#attach(transaction, ({ isOfFilter }) => isOfFilter);
      transaction.then(wording.replace);
      transaction.replaceNode(source, filter, (edge) => keep(edge) || job.from?.isPast?.(edge) === true);
      transaction.then('', () => (this.#filterFits = true));
      this.#attach(transaction, ({ isOfFilter }) => !isOfFilter);
      transaction.then('', () => (this.#jobFits = true));
    };
    if (this.isRehearsal) {
      await this.graph.rehearse(build);
      throw new Rehearsed();
    }
    await this.graph.transaction(build);
    this.#removed = false;
    for (const { node, readOnly } of this.#reopened) {
      beganWritable(node);
      node.isLentToJob = readOnly;
    }
    for (const node of this.#held)
      this.#unblock.push(node.addBlocker(`block device is in use by block job: ${this.job.type}`));
  }

  #attach(transaction: GraphTransaction, which: (use: Use) => boolean): void {
    for (const use of this.#uses.filter(which)) {
      if (!use.isOfFilter) transaction.then();
      transaction.attach(use.backend, use.role, use.node);
    }
  }

  /** Keeps the links from `top` down to `bottom` as they are until the job ends. */
  freezeChain(top: Node, bottom: Node): void {
    for (let at = top; at !== bottom;) {
      const edge = at.below;
      if (!edge) break;
      this.#freeze(edge);
      at = edge.node;
    }
  }

  #freeze(edge: Edge): void {
    edge.frozen++;
    this.#frozen.push(edge);
  }

  /** Lists what lets the job write to a node, until restoreReadOnly(). */
  listWritable(transaction: GraphTransaction, node: Node): void {
    this.#reopened.push({ node, readOnly: isMeantReadOnly(node) });
    transaction.setReadOnly(node, false);
  }

  /**
   * In a drained section, once the job's place is gone. A node that fails to become read-only stays writable: the
   * graph is as it should be, and the job's end must not depend on it.
   */
  async restoreReadOnly(): Promise<void> {
    for (const { node, readOnly } of this.#reopened.splice(0)) {
      if (readOnly) await endWritable(this.graph, node).catch(() => undefined);
      node.isLentToJob = false;
    }
  }

  /**
   * In a drained section: makes images name another backing file, then changes the graph. When either fails, those
   * that name it already get the old one again.
   */
  async withBackingReferences(
    nodes: readonly Node[],
    referenceOf: (overlay: Node) => BackingReference,
    changeGraph: () => Promise<void>,
  ): Promise<void> {
    const old: Array<readonly [Node, BackingReference]> = [];
    try {
      for (const node of nodes) {
        const former = backingReferenceOf(node);
        await changeBackingReference(this.graph, node, referenceOf(node));
        old.push([node, former]);
      }
      await changeGraph();
    } catch (error) {
      for (const [node, former] of old.reverse())
        await changeBackingReference(this.graph, node, former).catch(() => undefined);
      throw error;
    }
  }

  /** In a drained section: `gate` stands before every change of the source until the job's place ends. */
  guardSource(gate: ChangeGate | undefined): void {
    this.source.gate = gate;
  }

  /** The target of a copy, from now on. */
  copiesTo(target: BlockBackend): void {
    target.node.isCopy = true;
    target.signal = new CancelSignal();
    this.#copy = target;
  }

  /** After a force-cancel: the job waits no longer than this for what it has in flight to the copy. */
  giveUpCopy(): void {
    const copy = this.#copy;
    if (!copy) return;
    this.graph.host.clock.setTimer(GRACE_MS, () => {
      if (!this.job.isOver && copy.root) this.graph.giveUp(copy);
    });
  }

  /** Its requests are given up and still in flight: others share the node. */
  #isLeft(backend: BlockBackend): boolean {
    return (backend.signal?.isCancelled ?? false) && backend.hasRequests;
  }

  /** Lists the steps that end the job's place: parents of the filter go to `heir`, or to what it filters. */
  listRemoval(transaction: GraphTransaction, heir = this.filter.child('file').node): void {
    this.#listFilterRemoval(transaction, heir);
    this.#listBackends(transaction);
  }

  #listFilterRemoval(transaction: GraphTransaction, heir: Node): void {
    const shown = this.filter.child('file');
    this.#shown = shown.node;
    transaction.replaceNode(this.filter, heir);
    transaction.detach(shown);
  }

  #listBackends(transaction: GraphTransaction): void {
    for (const backend of this.#backends)
      if (backend.root && !this.#isLeft(backend)) transaction.detach(backend.root);
  }

  /**
   * The same where `heir` takes the source's place: its users go along, who know it by its name and came to it past
   * the filter, as in QEMU. What is below the heir itself stays.
   */
  listPivot(transaction: GraphTransaction, heir: Node): void {
    this.listRemoval(transaction, heir);
    const isOwn = ({ parent }: Edge): boolean =>
      parent === this.filter || (!(parent instanceof Node) && parent.owner === this);
    transaction.replaceNode(this.source, heir, isOwn);
  }

  /** Lets go of links; before the transaction that ends the place is built. */
  thaw(): void {
    for (const edge of this.#frozen.splice(0)) edge.frozen--;
  }

  /** In the same drained section, after the transaction with listRemoval or listPivot. */
  removed(): void {
    this.#removed = true;
    this.source.gate = undefined;
  }

  /** Takes filter and backends out, unless that was done. */
  async remove(): Promise<void> {
    if (this.#removed) return;
    // Those who are only above the source, other jobs among them, notice nothing of a filter that guards it not.
    const isAlone = this.source.gate === undefined && this.#reopened.length === 0;
    await this.section(isAlone ? [this.filter] : [this.source, this.filter], () => this.removeNow());
  }

  /** The same; the caller holds a drained section. */
  async removeNow(): Promise<void> {
    this.thaw();
    try {
      await this.graph.transaction((transaction) => this.listRemoval(transaction));
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      await this.graph.transaction((transaction) => this.#listBackends(transaction));
      this.#removeLater();
    }
    this.removed();
    await this.restoreReadOnly();
  }

  /**
   * Users who came while the job ran, and whom only its filter lets be together, keep it until one of them has gone; so does a
   * graph whose description cannot be written.
   */
  #removeLater(): void {
    const { graph, filter } = this;
    const isThere = (): boolean => graph.find(filter.name) === filter && !filter.isClosing;
    const remove = async (): Promise<void> => {
      await graph.drained([filter], async () => {
        if (!isThere()) return;
        await graph.transaction((change) => this.#listFilterRemoval(change, filter.child('file').node));
      });
      await graph.release([filter, this.#shown]);
    };
    const look = async (): Promise<void> => {
      if (!isThere()) return;
      await remove().catch(() => graph.host.clock.setTimer(GRACE_MS, () => void look()));
    };
    graph.host.clock.setTimer(GRACE_MS, () => void look());
  }

  /**
   * Ends blockers and closes what nothing holds any more. What the job has done is done by then, and durable where it is to
   * be: whether the last flush does well is not its affair.
   */
  async close(candidates: Iterable<Node>): Promise<void> {
    this.thaw();
    // Where its place could not be taken out: nothing of the source waits for it.
    if (!this.#removed) this.removed();
    for (const { node } of this.#reopened) node.isLentToJob = false;
    for (const unblock of this.#unblock.splice(0)) unblock();
    if (this.#copy?.root) void this.graph.retire(this.#copy);
    // What was above the source, or the filter, may have gone while the job ran.
    await this.graph.release([this.filter, ...candidates, this.source, this.#shown]);
  }

  /** A drained section of the job's own: guests and other jobs are quiet, this one works. */
  async section<T>(nodes: Iterable<Node>, body: () => Promise<T>): Promise<T> {
    this.job.pace.rest();
    return this.#surroundings.changes.run(() =>
      this.graph.drained(
        nodes,
        async () => {
          await this.job.pace.wakeInSection();
          return body();
        },
        this,
      ),
    );
  }

  /** A drained section on behalf of a caller that is not the job's own loop. */
  drained<T>(nodes: Iterable<Node>, body: () => Promise<T>): Promise<T> {
    return this.isRehearsal ? body() : this.graph.drained(nodes, body, this);
  }
}

/** Whether a parent of the source belongs to the target's own chain, which reads the source past the filter. */
export function isInChain(parent: EdgeParent, target: Node): boolean {
  return parent instanceof Node && (parent === target || target.isAbove(parent));
}
