import type { IoVector } from '../../src/base/io-vector.js';
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
  const spoilt = (position: number, memory: IoVector, from: number, lengthBytes: number): IoVector => {
    const lie = lies.find((one) => one.times > 0 && covers(position, lengthBytes, one.position));
    if (!lie) return memory;
    lie.times--;
    const bytes = Buffer.from(memory.gather(from, lengthBytes));
    bytes[lie.position - position] = (bytes[lie.position - position] ?? 0) ^ 0xff;
    const VectorClass = memory.constructor as typeof IoVector;
    const copy = VectorClass.of(Buffer.concat([Buffer.alloc(from), bytes]));
    return copy;
  };
  return withMethods(file, {
    tryWrite: (position, memory, from, length) =>
      file.tryWrite(position, spoilt(position, memory, from, length), from, length),
    write: (position, memory, from, length) =>
      file.write(position, spoilt(position, memory, from, length), from, length),
  } satisfies Partial<HostFile>);
}

function covers(position: number, lengthBytes: number, at: number): boolean {
  return position <= at && at < position + lengthBytes;
}

/** An object with some other methods; the rest are its own. */
function withMethods<T extends object>(own: T, methods: Partial<T>): T {
  return new Proxy(own, {
    get(object, key) {
      const other = methods[key as keyof T];
      if (other !== undefined) return other;
      const value: unknown = Reflect.get(object, key, object);
      return typeof value === 'function' ? (value.bind(object) as unknown) : value;
    },
  });
}
