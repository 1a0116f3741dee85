import { basename } from 'node:path';
import { errnoError } from '../../src/base/error.js';
import type { Host, HostFile, OpenFileOptions } from '../../src/host/host.js';

export type FaultyOperation = 'open' | 'read' | 'write' | 'truncate' | 'flush';

export interface HostFault {
  op: FaultyOperation;
  /** The file's name, without its folder. */
  file: string;
  errno: string;
  /** Strikes only while this holds (always). */
  when?: () => boolean;
}

/** Each method, and what it does to its file. */
const OPERATIONS: { [method: string]: FaultyOperation } = {
  tryRead: 'read',
  read: 'read',
  tryWrite: 'write',
  write: 'write',
  punchHole: 'write',
  zeroRange: 'write',
  allocate: 'write',
  tryAllocate: 'write',
  copyFrom: 'write',
  tryCopyFrom: 'write',
  truncate: 'truncate',
  tryTruncate: 'truncate',
  flush: 'flush',
};

/** A host whose files fail as they are told to; what would be done at once waits for that. */
export class FaultyHost {
  readonly host: Host;
  readonly faults = new Set<HostFault>();
  /** How often each has struck. */
  readonly struck = new Map<HostFault, number>();
  readonly #inner = new WeakMap<HostFile, HostFile>();

  constructor(host: Host) {
    const { files } = host;
    const open = async (path: string, options: OpenFileOptions): Promise<HostFile> => {
      const fault = options.write ? this.#matching('open', path) : undefined;
      if (fault) throw this.#strike(fault, path);
      const again = options.again && (this.#inner.get(options.again) ?? options.again);
      return this.#wrap(await files.open(path, { ...options, ...(again && { again }) }));
    };
    this.host = {
      ...host,
      files: {
        open,
        descriptorSets: files.descriptorSets,
        stat: (path) => files.stat(path),
        unlink: (path) => files.unlink(path),
        syncDirectory: (path) => files.syncDirectory(path),
        mkdir: (path) => files.mkdir(path),
        buffer: (lengthBytes) => files.buffer(lengthBytes),
      },
    };
  }

  #matching(op: FaultyOperation, path: string): HostFault | undefined {
    const name = basename(path);
    for (const fault of this.faults)
      if (fault.op === op && fault.file === name && fault.when?.() !== false) return fault;
    return undefined;
  }

  #strike(fault: HostFault, path: string): Error {
    this.struck.set(fault, (this.struck.get(fault) ?? 0) + 1);
    return errnoError(fault.errno, undefined, { path });
  }

  #wrap(file: HostFile): HostFile {
    const wrapped = new Proxy(file, {
      get: (target, key) => {
        const value: unknown = Reflect.get(target, key, target);
        if (typeof value !== 'function') return value;
        const method = value as (...args: unknown[]) => unknown;
        return (...args: unknown[]): unknown => {
          const fault = this.#faultOf(String(key), file, args);
          if (fault && String(key).startsWith('try')) return key === 'tryCopyFrom' ? -1 : false;
          if (fault) return Promise.reject(this.#strike(fault, file.path));
          const inner = args.map((arg) => this.#inner.get(arg as HostFile) ?? arg);
          return method.apply(target, inner);
        };
      },
    });
    this.#inner.set(wrapped, file);
    return wrapped;
  }

  /** The file's own, or one of the file that it copies from. */
  #faultOf(method: string, file: HostFile, args: readonly unknown[]): HostFault | undefined {
    const op = OPERATIONS[method];
    if (!op) return undefined;
    const source = args.map((arg) => this.#inner.get(arg as HostFile)).find((inner) => inner !== undefined);
    return this.#matching(op, file.path) ?? (source && this.#matching('read', source.path));
  }
}
