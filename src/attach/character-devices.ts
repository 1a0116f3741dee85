import { BlockError } from '../base/error.js';
import type { CharacterDevice } from './character-device.js';

/** The character devices of one engine, by their ids. */
export class CharacterDevices {
  readonly #devices = new Map<string, CharacterDevice>();

  /** Errors: those of `open`; exists. */
  async add(id: string, open: () => Promise<CharacterDevice>): Promise<CharacterDevice> {
    if (this.#devices.has(id)) throw new BlockError('exists', `Chardev with id '${id}' already exists`);
    const device = await open();
    this.#devices.set(id, device);
    return device;
  }

  find(id: string): CharacterDevice | undefined {
    return this.#devices.get(id);
  }

  list(): CharacterDevice[] {
    return [...this.#devices.values()];
  }

  /** Another one in the place of one that nobody uses. Errors: those of `open`; busy. */
  async replace(old: CharacterDevice, open: () => Promise<CharacterDevice>): Promise<CharacterDevice> {
    if (old.isBusy) throw new BlockError('busy', 'Chardev user does not support chardev hotswap');
    // Another socket may be at the same address; of all others the new one must be there before the old one goes.
    if (!old.mustCloseFirst) {
      const device = await open();
      await old.close();
      this.#devices.set(old.id, device);
      return device;
    }
    this.#devices.delete(old.id);
    await old.close();
    return this.add(old.id, open);
  }

  /** Errors: not-found, busy. */
  async remove(id: string): Promise<void> {
    const device = this.#devices.get(id);
    if (!device) throw new BlockError('not-found', `Chardev '${id}' not found`);
    if (device.isBusy) throw new BlockError('busy', `Chardev '${id}' is busy`);
    this.#devices.delete(id);
    await device.close();
  }

  async close(): Promise<void> {
    for (const device of this.#devices.values()) await device.close();
    this.#devices.clear();
  }
}
