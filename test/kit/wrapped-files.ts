import type { HostFile, HostFiles, OpenFileOptions } from '../../src/host/host.js';

/** What is answered in place of a file's method; undefined: what the method does. `given`: another file that it gets. */
type Intercept = (method: string, given: HostFile | undefined) => { answer: unknown } | undefined;

/** Files of a host whose calls somebody sees before they are made. They may be given to one another and opened again. */
export class WrappedFiles {
  readonly #files: HostFiles;
  readonly #inner = new WeakMap<HostFile, HostFile>();

  constructor(files: HostFiles) {
    this.#files = files;
  }

  /** The file itself, not yet wrapped. */
  open(path: string, options: OpenFileOptions): Promise<HostFile> {
    const again = options.again && (this.#inner.get(options.again) ?? options.again);
    return this.#files.open(path, { ...options, ...(again && { again }) });
  }

  wrap(file: HostFile, intercept: Intercept): HostFile {
    const wrapped = new Proxy(file, {
      get: (target, key) => {
        const value: unknown = Reflect.get(target, key, target);
        if (typeof value !== 'function') return value;
        const method = value as (...args: unknown[]) => unknown;
        return (...args: unknown[]): unknown => {
          const given = args.map((arg) => this.#inner.get(arg as HostFile));
          const instead = intercept(
            String(key),
            given.find((inner) => inner !== undefined),
          );
          if (instead) return instead.answer;
          return method.apply(
            target,
            args.map((arg, i) => given[i] ?? arg),
          );
        };
      },
    });
    this.#inner.set(wrapped, file);
    return wrapped;
  }
}
