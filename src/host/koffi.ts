import { createRequire } from 'node:module';
import { workerData } from 'node:worker_threads';

export type Koffi = typeof import('koffi');

const load = createRequire(import.meta.url);

/** What a compute thread is told that is to run what has been loaded already, whatever files are there by now. */
export interface LoadedKoffi {
  readonly koffiFile?: string;
}

/** As its package makes it; in such a thread, as it is without what that adds (warnings). Errors: those of loading it. */
export function loadKoffi(): Koffi {
  const { koffiFile: file } = (workerData ?? {}) as LoadedKoffi;
  if (typeof file !== 'string') return load('koffi') as Koffi;
  const module = { exports: {} };
  process.dlopen(module, file);
  return module.exports as Koffi;
}

/**
 * By what name this process has loaded it. Under it the system's loader gives it again without a look at the file. Errors:
 * those of loading it.
 */
export function loadedKoffiFile(): string | undefined {
  loadKoffi();
  return Object.keys(load.cache).find((path) => path.endsWith('koffi.node'));
}
