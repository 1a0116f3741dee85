import { BlockError } from '../../base/error.js';
import { CAPABILITIES } from '../../schema/migration.js';

export type Capability = (typeof CAPABILITIES)[number];

/** What would be seen, and is not done. Those about memory and processors alone are done: there are none to move. */
const REFUSED: { readonly [name in Capability]?: string } = {
  'postcopy-ram': 'Postcopy is not supported by livedisk',
  'x-colo': 'COLO is not supported by livedisk',
  block: 'Block migration is not supported by livedisk: mirror the disk to an NBD export of the destination',
  multifd: 'Multifd is not supported by livedisk: a machine is moved over one connection',
  'postcopy-blocktime': 'Postcopy is not supported by livedisk',
  'background-snapshot': 'Background snapshots are not supported by livedisk',
  'zero-copy-send': 'Zero copy only available for non-compressed non-TLS multifd migration',
  'postcopy-preempt': 'Postcopy preempt requires postcopy-ram',
};

/** Which capabilities are on. */
export class Capabilities {
  readonly #on = new Set<Capability>();

  has(name: Capability): boolean {
    return this.#on.has(name);
  }

  /** Those that are on. */
  get on(): Capability[] {
    return CAPABILITIES.filter((capability) => this.has(capability));
  }

  list(): Array<{ capability: Capability; state: boolean }> {
    return CAPABILITIES.map((capability) => ({ capability, state: this.has(capability) }));
  }

  /** All of them or none. Errors: kind unsupported for one that is not done. */
  set(changes: ReadonlyArray<{ capability: Capability; state: boolean }>): void {
    for (const { capability, state } of changes) {
      const why = state ? REFUSED[capability] : undefined;
      if (why !== undefined) throw new BlockError('unsupported', why);
    }
    for (const { capability, state } of changes) {
      if (state) this.#on.add(capability);
      else this.#on.delete(capability);
    }
  }
}
