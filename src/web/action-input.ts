import { BlockError } from '../base/error.js';
import { bool, int, type JsonValue, optional, required, str, struct, type Type } from '../schema/types.js';
import type { Action } from '../view/plan/types.js';

/** What each action takes, as a page sends it. */
const ACTIONS: Readonly<Record<Action['kind'], Type<object>>> = {
  snapshot: struct('snapshot', {
    kind: required(str),
    image: required(str),
    file: required(str),
    node: required(str),
  }),
  stream: struct('stream', { kind: required(str), image: required(str), base: optional(str) }),
  commit: struct('commit', { kind: required(str), image: required(str), base: required(str) }),
  mirror: struct('mirror', {
    kind: required(str),
    image: required(str),
    file: required(str),
    node: required(str),
  }),
  backup: struct('backup', { kind: required(str), image: required(str), file: required(str) }),
  delete: struct('delete', { kind: required(str), image: required(str) }),
  resize: struct('resize', { kind: required(str), image: required(str), bytes: required(int) }),
  export: struct('export', {
    kind: required(str),
    image: required(str),
    name: required(str),
    isWritable: required(bool),
    file: optional(str),
  }),
  percentiles: struct('percentiles', { kind: required(str), isOn: required(bool) }),
  unexport: struct('unexport', {
    kind: required(str),
    name: required(str),
    isServerEnded: optional(bool),
  }),
  job: struct('job', { kind: required(str), job: required(str), verb: required(str), speed: optional(int) }),
};

/** Errors: invalid, naming what is wrong with it. */
export function parseAction(value: JsonValue | undefined): Action {
  const kind = typeof value === 'object' && value !== null && 'kind' in value ? value.kind : undefined;
  if (typeof kind !== 'string' || !Object.hasOwn(ACTIONS, kind))
    throw new BlockError('invalid', 'an action needs a kind that there is');
  return ACTIONS[kind as Action['kind']].parse(value as JsonValue, 'action', 'qmp') as Action;
}
