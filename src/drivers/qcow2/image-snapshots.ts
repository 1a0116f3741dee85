import { defined } from '../../base/assert.js';
import type { InternalSnapshot, InternalSnapshots, NewSnapshot } from '../../block/driver.js';
import { diskBytesOf, type SnapshotEntry, snapshotInfo } from './disk/snapshots.js';
import { deleteSnapshot, goToSnapshot, readSnapshotVmState, takeSnapshot } from './features/snapshots.js';
import { changeVmState, readVmState } from './features/vm-state.js';
import type { Qcow2Map } from './map-driver.js';
import type { OpenImage } from './open-image.js';

/** What the open image has of internal snapshots. */
export class Qcow2Snapshots implements InternalSnapshots {
  readonly #map: Qcow2Map;
  readonly #reopen: (shown: SnapshotEntry) => Promise<OpenImage>;

  /** `reopen`: another view of the image, of a snapshot, which is only read. */
  constructor(map: Qcow2Map, reopen: (shown: SnapshotEntry) => Promise<OpenImage>) {
    this.#map = map;
    this.#reopen = reopen;
  }

  get list(): InternalSnapshot[] {
    return this.#map.image.snapshots.entries.map((entry) => ({
      id: entry.id,
      name: entry.name,
      vmStateBytes: entry.vmStateBytes,
      diskBytes: diskBytesOf(entry, this.#map.image.context.header),
      info: snapshotInfo(entry),
    }));
  }

  #find(id: string): SnapshotEntry {
    return defined(
      this.#map.image.snapshots.entries.find((entry) => entry.id === id),
      `snapshot ${id}`,
    );
  }

  async take(snapshot: NewSnapshot): Promise<void> {
    await takeSnapshot(this.#map.image, snapshot);
  }

  goTo(id: string): Promise<void> {
    return goToSnapshot(this.#map.image, this.#find(id));
  }

  delete(id: string): Promise<void> {
    return deleteSnapshot(this.#map.image, this.#find(id));
  }

  async show(id: string): Promise<void> {
    this.#map.image = await this.#reopen(this.#find(id));
  }

  async readVmState(id: string, offset: number, buffer: Uint8Array): Promise<void> {
    const entry = this.#find(id);
    await readSnapshotVmState(await this.#reopen(entry), entry, offset, buffer);
  }

  readPresentVmState(offset: number, buffer: Uint8Array): Promise<void> {
    return readVmState(this.#map.image, offset, buffer);
  }

  async writePresentVmState(offset: number, bytes: Uint8Array): Promise<void> {
    const { image } = this.#map;
    image.context.assertMayWrite();
    await image.context.beginChanges();
    await changeVmState(image, offset, bytes);
  }
}
