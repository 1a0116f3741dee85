import { assert } from '../base/assert.js';
import type { BlockBackend } from './backend.js';
import { Node } from './node.js';

/**
 * A drained section: some nodes, and at every moment all nodes and backends above them, are quiet. Who comes there
 * while it lasts is quiesced at once; who leaves is released. Backends of `owner` go on.
 */
export class DrainedSection {
  readonly #over: ReadonlySet<Node>;
  readonly #owner: object | undefined;
  readonly #wake: () => void;
  #nodes: ReadonlySet<Node> = new Set();
  #backends: ReadonlySet<BlockBackend> = new Set();
  #isAtWork = false;

  /** `wake` is called when a driver has come to rest. */
  constructor(over: Iterable<Node>, owner: object | undefined, wake: () => void) {
    this.#over = new Set(over);
    this.#owner = owner;
    this.#wake = wake;
    this.update();
  }

  /** After each change of the graph. */
  update(): void {
    const { nodes, backends } = usersOf(this.#over, this.#owner);
    this.#change(nodes, backends);
  }

  /** Nothing is in flight in it any more. */
  get isQuiet(): boolean {
    for (const backend of this.#backends) if (backend.isBusy) return false;
    for (const node of this.#nodes) if (node.isComingToRest) return false;
    return true;
  }

  /** Its body runs now: who comes from here on must be idle already, since nobody waits for them. */
  begin(): void {
    assert(this.isQuiet, 'the body of a drained section begins while something is in flight');
    this.#isAtWork = true;
  }

  end(): void {
    this.#change(new Set(), new Set());
  }

  has(member: Node | BlockBackend): boolean {
    return member instanceof Node ? this.#nodes.has(member) : this.#backends.has(member);
  }

  /** Who comes is quiesced before anyone is released, so that moving inside wakes nobody. */
  #change(nodes: ReadonlySet<Node>, backends: ReadonlySet<BlockBackend>): void {
    const oldNodes = this.#nodes;
    const oldBackends = this.#backends;
    this.#nodes = nodes;
    this.#backends = backends;
    for (const backend of backends) {
      if (oldBackends.has(backend)) continue;
      assert(!this.#isAtWork || !backend.isBusy, () => `${backend.description} comes busy to a drained node`);
      backend.quiesce();
    }
    for (const node of nodes) if (!oldNodes.has(node)) node.quiesce(this.#wake);
    for (const node of oldNodes) if (!nodes.has(node)) node.unquiesce();
    for (const backend of oldBackends) if (!backends.has(backend)) backend.unquiesce();
  }
}

/** Some nodes and all above them, and the backends from which a request can reach one of them. */
function usersOf(
  over: Iterable<Node>,
  owner: object | undefined,
): { nodes: Set<Node>; backends: Set<BlockBackend> } {
  const nodes = new Set(over);
  const backends = new Set<BlockBackend>();
  for (const node of nodes) {
    for (const { parent } of node.parents) {
      if (parent instanceof Node) nodes.add(parent);
      else if (owner === undefined || parent.owner !== owner) backends.add(parent);
    }
  }
  return { nodes, backends };
}
