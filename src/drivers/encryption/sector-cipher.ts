import { KiB } from '../../base/limits.js';
import { aesCbc, aesCtr, aesEcb, type AesParameters, aesXts } from '../../codec/index.js';
import type { ComputeTask, HostCompute } from '../../host/compute.js';
import { type Cipher, vectorOf } from './cipher.js';

export const SECTOR_BYTES = 512;
/** What a thread does of a long request at a time. */
const PIECE_BYTES = 256 * KiB;

const MODES = { xts: aesXts, cbc: aesCbc, ecb: aesEcb, ctr: aesCtr } as const;

/** A cipher with its key: encrypts and decrypts whole sectors, large requests on all threads. */
export class SectorCipher {
  readonly #compute: HostCompute;
  readonly #cipher: Cipher;
  readonly #key: Uint8Array;

  constructor(compute: HostCompute, cipher: Cipher, key: Uint8Array) {
    this.#compute = compute;
    this.#cipher = cipher;
    this.#key = key;
  }

  /** In place. `firstSector`: the number that the first sector's vector is made of. */
  decrypt(firstSector: number, bytes: Uint8Array): Promise<void> {
    return this.#run('decrypt', firstSector, bytes, bytes);
  }

  /** Into memory of its own. */
  async encrypt(firstSector: number, bytes: Uint8Array): Promise<Buffer> {
    const output = Buffer.allocUnsafe(bytes.length);
    await this.#run('encrypt', firstSector, bytes, output);
    return output;
  }

  async #run(
    direction: AesParameters['direction'],
    firstSector: number,
    input: Uint8Array,
    output: Uint8Array,
  ): Promise<void> {
    const running: Array<Promise<number>> = [];
    for (let at = 0; at < input.length; at += PIECE_BYTES) {
      const task = this.#task(
        direction,
        firstSector + at / SECTOR_BYTES,
        input.subarray(at, at + PIECE_BYTES),
        output.subarray(at, at + PIECE_BYTES),
      );
      if (this.#compute.tryRun(task) >= 0) continue;
      await this.#compute.room(this);
      running.push(this.#compute.run(task, { user: this }));
    }
    // Nobody writes to the output any more when the request fails.
    const settled = await Promise.allSettled(running);
    for (const result of settled) if (result.status === 'rejected') throw result.reason;
  }

  #task(
    direction: AesParameters['direction'],
    firstSector: number,
    input: Uint8Array,
    output: Uint8Array,
  ): ComputeTask<AesParameters> {
    const parameters: AesParameters = {
      key: this.#key,
      direction,
      sectorBytes: SECTOR_BYTES,
      firstSector,
      initialVector: vectorOf(this.#cipher),
    };
    return { function: MODES[this.#cipher.mode], input, output, parameters };
  }
}
