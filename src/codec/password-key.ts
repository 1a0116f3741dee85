import type { ComputeFunction } from '../host/compute.js';
import { codecProgram } from './program.js';

export interface PasswordKeyParameters {
  /** As node:crypto names it. */
  hash: string;
  salt: Uint8Array;
  iterations: number;
}

/** PBKDF2 (RFC 8018): a key as long as the output, of the password that the input is. */
export const passwordKey: ComputeFunction<PasswordKeyParameters> = {
  program: codecProgram,
  name: 'password-key',
  maxSyncBytes: 0,
  run(input, output, { hash, salt, iterations }) {
    const { pbkdf2Sync } = process.getBuiltinModule('node:crypto');
    output.set(pbkdf2Sync(input, salt, iterations, output.byteLength, hash));
    return output.byteLength;
  },
};
