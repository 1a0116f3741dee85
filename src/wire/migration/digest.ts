import { SHA256_BYTES, sha256 } from '../../codec/checksum.js';
import type { Section } from './messages.js';

export function sha256Hex(bytes: Uint8Array): string {
  const digest = new Uint8Array(SHA256_BYTES);
  sha256.run(bytes, digest, undefined);
  return Buffer.from(digest).toString('hex');
}

/** Of all sections in their order: each is hashed with what came before it. */
export class SectionsDigest {
  #digest = '';
  #count = 0;

  add({ name, version, bytes }: Section): void {
    this.#digest = sha256Hex(Buffer.concat([Buffer.from(`${this.#digest} ${name} ${version} `), bytes]));
    this.#count++;
  }

  get end(): { sections: number; sha256: string } {
    return { sections: this.#count, sha256: this.#digest };
  }
}
