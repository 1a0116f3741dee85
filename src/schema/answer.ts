import { BlockError } from '../base/error.js';
import type { CommandName, CommandResult } from './commands.js';
import { RETURNS } from './returns.js';
import { isJsonObject, type JsonValue, type Type } from './types.js';

/**
 * What a server says to a command, as the schema has it. Members that are not known are left out: a later server may tell
 * more. Errors: invalid, when it is not what that command answers.
 */
export function answerTo<N extends CommandName>(command: N, answer: JsonValue): CommandResult<N> {
  const type = RETURNS[command];
  try {
    return (type ? type.parse(known(type, answer), 'answer', 'qmp') : answer) as CommandResult<N>;
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw new BlockError('invalid', `the server's answer to ${command} is none: ${error.message}`, {
      cause: error,
      hint: 'It may be of another version than this program, or no livedisk.',
    });
  }
}

/** Without members that the type does not have. */
function known({ description }: Type<unknown>, value: JsonValue): JsonValue {
  if (description.kind === 'array' && Array.isArray(value))
    return value.map((item) => known(description.element, item));
  if (description.kind !== 'object' || description.variants || !isJsonObject(value)) return value;
  const members = Object.entries(description.members).flatMap(([key, { type }]) => {
    const member = Object.hasOwn(value, key) ? value[key] : undefined;
    return member === undefined ? [] : [[key, known(type, member)] as const];
  });
  return Object.fromEntries(members);
}
