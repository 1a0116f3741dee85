import { BlockError } from '../../base/error.js';
import {
  bool,
  type Infer,
  int,
  type JsonValue,
  optional,
  required,
  str,
  struct,
  type Type,
} from '../../schema/types.js';

/** The messages of a move, in the order in which they are said (docs/MIGRATION.md). All but a section's bytes are JSON. */

const NOTHING = struct('nothing', {});

/**
 * Who comes. `word`: SHA-256 of what hands the machine over, in hex; `again`: of a move that was cut; `before`: the last
 * move, whose word was not said and never will be; `rehearsal`: asks only whether a move would be taken.
 */
const Hello = struct('hello', {
  session: required(str),
  word: required(str),
  again: optional(bool),
  before: optional(str),
  rehearsal: optional(bool),
  machine: required(struct('machine', { type: required(str), uuid: optional(str) })),
});

const Reason = struct('reason', { reason: required(str) });

const End = struct('end', { sections: required(int), sha256: required(str) });
const Word = struct('word', { word: required(str) });
/** `word`: SHA-256 of what gives the machine back. */
const Ready = struct('ready', { word: required(str) });

/** `word`: of a destination that will never have the machine. */
const Known = struct('known', { state: required(str), word: optional(str) });

const TYPES = {
  hello: [1, Hello],
  welcome: [2, NOTHING],
  refuse: [3, Reason],
  section: [4, undefined],
  described: [5, NOTHING],
  accepted: [6, NOTHING],
  end: [7, End],
  ready: [8, Ready],
  give: [9, NOTHING],
  taken: [10, NOTHING],
  go: [11, Word],
  owned: [12, NOTHING],
  bye: [13, NOTHING],
  known: [14, Known],
  wait: [15, NOTHING],
} as const satisfies { readonly [name: string]: readonly [number, Type<unknown> | undefined] };

export type MessageName = keyof typeof TYPES;
type Body<N extends MessageName> =
  (typeof TYPES)[N][1] extends Type<unknown> ? Infer<(typeof TYPES)[N][1]> : Section;

/** A part of the machine's state. */
export interface Section {
  readonly name: string;
  readonly version: number;
  readonly bytes: Buffer;
}

export type Message = { [N in MessageName]: { readonly name: N; readonly body: Body<N> } }[MessageName];
export type MessageOf<N extends MessageName> = Extract<Message, { name: N }>;

export function encodeMessage<N extends MessageName>(
  name: N,
  body: MessageOf<N>['body'],
): { type: number; payload: Buffer } {
  const [type] = TYPES[name];
  const payload = name === 'section' ? encodeSection(body as Section) : Buffer.from(JSON.stringify(body));
  return { type, payload };
}

/** Errors: kind unsupported for a type that is not known, corrupt for what breaks its form. */
export function decodeMessage({ type, payload }: { type: number; payload: Buffer }): Message {
  const found = Object.entries(TYPES).find(([, [number]]) => number === type);
  if (!found)
    throw new BlockError('unsupported', `The migration stream has an unknown message (type ${type})`);
  const [name, [, form]] = found;
  try {
    const body = form
      ? form.parse(JSON.parse(payload.toString('utf8')) as JsonValue, '', 'qmp')
      : decodeSection(payload);
    return { name, body } as Message;
  } catch (error) {
    throw new BlockError('corrupt', `The migration stream is damaged: message '${name}'`, { cause: error });
  }
}

/** u8 length of the name, name, u32 version, bytes. */
function encodeSection({ name, version, bytes }: Section): Buffer {
  const label = Buffer.from(name, 'latin1');
  const head = Buffer.alloc(1 + label.length + 4);
  head.writeUInt8(label.length, 0);
  label.copy(head, 1);
  head.writeUInt32BE(version, 1 + label.length);
  return Buffer.concat([head, bytes]);
}

function decodeSection(payload: Buffer): Section {
  const nameBytes = payload.readUInt8(0);
  const version = payload.readUInt32BE(1 + nameBytes);
  const name = payload.toString('latin1', 1, 1 + nameBytes);
  return { name, version, bytes: payload.subarray(5 + nameBytes) };
}
