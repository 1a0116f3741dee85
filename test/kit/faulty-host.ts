import { basename } from 'node:path';
import { errnoError } from '../../src/base/error.js';
import type { Host, HostFile, OpenFileOptions } from '../../src/host/host.js';
import { WrappedFiles } from './wrapped-files.js';

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

  constructor(host: Host) {
    const { files } = host;
    const wrapped = new WrappedFiles(files);
    const open = async (path: string, options: OpenFileOptions): Promise<HostFile> => {
      const fault = options.write ? this.#matching('open', path) : undefined;
      if (fault) throw this.#strike(fault, path);
      const file = await wrapped.open(path, options);
      return wrapped.wrap(file, (method, source) => this.#struckAnswer(file, method, source));
    };
    this.host = {
      ...host,
      files: {
        open,
        descriptorSets: files.descriptorSets,
        stat: (path) => files.stat(path),
        unlink: (path) => files.unlink(path),
        room: (path) => files.room(path),
        link: (path, newPath) => files.link(path, newPath),
        syncDirectory: (path) => files.syncDirectory(path),
        list: (path) => files.list(path),
        mkdir: (path, options) => files.mkdir(path, options),
        rename: (from, to) => files.rename(from, to),
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

  /** What a method answers that a fault strikes: the file's own, or one of the file that it copies from. */
  #struckAnswer(
    file: HostFile,
    method: string,
    source: HostFile | undefined,
  ): { answer: unknown } | undefined {
    const op = OPERATIONS[method];
    if (!op) return undefined;
    const fault = this.#matching(op, file.path) ?? (source && this.#matching('read', source.path));
    if (!fault) return undefined;
    if (method.startsWith('try')) return { answer: method === 'tryCopyFrom' ? -1 : false };
    return { answer: Promise.reject(this.#strike(fault, file.path)) };
  }
}
