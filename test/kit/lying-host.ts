import { IoVector } from '../../src/base/io-vector.js';
import type { Host, HostFile } from '../../src/host/host.js';

/** A disk that keeps something else than was written there, so many times. */
export interface Lie {
  /** The end of the file's path. */
  file: string;
  position: number;
  times: number;
}

/** A host whose disks lie: whoever writes over a lie's position has another byte stored there, and is not told. */
export function lyingHost(host: Host, lies: Lie[]): Host {
  const open: Host['files']['open'] = async (path, options) => {
    const file = await host.files.open(path, options);
    const own = lies.filter(({ file: end }) => path.endsWith(end));
    return own.length > 0 ? lyingFile(file, own) : file;
  };
  return { ...host, files: withMethods(host.files, { open }) };
}

function lyingFile(file: HostFile, lies: Lie[]): HostFile {
  const lieFor = (position: number, lengthBytes: number): Lie | undefined =>
    lies.find((one) => one.times > 0 && covers(position, lengthBytes, one.position));
  const spoilt = (lie: Lie, position: number, bytes: Uint8Array): IoVector => {
    const copy = Buffer.from(bytes);
    copy[lie.position - position] = 255 - (copy[lie.position - position] ?? 0);
    return IoVector.of(copy);
  };
  return withMethods(file, {
    // What is not done now is done later: then is the time to lie.
    tryWrite: (position, memory, from, length) =>
      lieFor(position, length) === undefined && file.tryWrite(position, memory, from, length),
    write: (position, memory, from, length) => {
      const lie = lieFor(position, length);
      if (!lie) return file.write(position, memory, from, length);
      lie.times--;
      return file.write(position, spoilt(lie, position, memory.gather(from, length)), 0, length);
    },
  } satisfies Partial<HostFile>);
}

function covers(position: number, lengthBytes: number, at: number): boolean {
  return position <= at && at < position + lengthBytes;
}

/** An object with some other methods; the rest are its own. */
export function withMethods<T extends object>(own: T, methods: Partial<T>): T {
  return new Proxy(own, {
    get(object, key) {
      const other = methods[key as keyof T];
      if (other !== undefined) return other;
      const value: unknown = Reflect.get(object, key, object);
      return typeof value === 'function' ? (value.bind(object) as unknown) : value;
    },
  });
}
