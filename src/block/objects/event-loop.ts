import { int64, type JsonValue } from '../../schema/types.js';
import { invalid, type ObjectType, type Property, type PropertyValues, UserObject } from './object.js';

/** What a thread pool has where nothing was given, and the most that it may be given. */
const POOL_MAX = 64;
const MOST_THREADS = 2 ** 31 - 1;

function count(name: string, initial: number): Property {
  return {
    name,
    qomType: 'int',
    type: int64,
    initial,
    check(value: JsonValue): void {
      if ((value as number | bigint) < 0)
        throw invalid(`${name} value must be in range [0, 9223372036854775807]`);
    },
  };
}

const EVENT_LOOP: readonly Property[] = [
  count('thread-pool-min', 0),
  count('aio-max-batch', 0),
  count('thread-pool-max', POOL_MAX),
];

function checkPool(values: PropertyValues): void {
  const least = (values['thread-pool-min'] ?? 0) as number | bigint;
  const most = (values['thread-pool-max'] ?? POOL_MAX) as number | bigint;
  const isRight = least <= most && most > 0 && most <= MOST_THREADS;
  if (!isRight) throw invalid('bad thread-pool-min/thread-pool-max values');
}

/**
 * A thread of QEMU's that devices and exports may be given. livedisk does I/O in the kernel and in threads of its own:
 * the object is there for tools that make one, name it and ask for it.
 */
export const IOTHREAD: ObjectType = {
  name: 'iothread',
  parents: ['event-loop-base', 'object'],
  properties: [...EVENT_LOOP, count('poll-max-ns', 32768), count('poll-grow', 0), count('poll-shrink', 0)],
  check: checkPool,
  make: (id, values) => new UserObject(id, IOTHREAD, values),
};

export const MAIN_LOOP: ObjectType = {
  name: 'main-loop',
  parents: ['event-loop-base', 'object'],
  isSingle: true,
  properties: EVENT_LOOP,
  check: checkPool,
  make: (id, values) => new UserObject(id, MAIN_LOOP, values),
};
