import type { JsonObject, JsonValue } from '../../schema/types.js';

/**
 * SchemaInfo of two servers as one: commands of which `isTheirs` holds, and events that we do not have, are as they
 * describe them, all else as we do. Types, which have numbers for names, get others where both have the same.
 */
export function joinSchemas(
  ours: readonly JsonObject[],
  theirs: readonly JsonObject[],
  isTheirs: (command: string) => boolean,
): JsonObject[] {
  const first = 1 + Math.max(0, ...ours.map(({ name }) => numberOf(name)));
  const moved = theirs.map((entity) => renamed(entity, first));
  const ourEvents = new Set(ours.filter(isEvent).map(({ name }) => name));
  const roots = [
    ...ours.filter((entity) => isEvent(entity) || (isCommand(entity) && !isTheirs(entity['name'] as string))),
    ...moved.filter((entity) =>
      isEvent(entity)
        ? !ourEvents.has(entity['name'])
        : isCommand(entity) && isTheirs(entity['name'] as string),
    ),
  ];
  const types = new Map([...moved, ...ours].filter(isType).map((entity) => [entity['name'], entity]));
  const used = new Set<JsonObject>();
  const visit = (entity: JsonObject): void => {
    for (const name of references(entity)) {
      const type = types.get(name);
      if (!type || used.has(type)) continue;
      used.add(type);
      visit(type);
    }
  };
  for (const root of roots) visit(root);
  return [...roots, ...used];
}

const isEvent = (entity: JsonObject): boolean => entity['meta-type'] === 'event';
const isCommand = (entity: JsonObject): boolean => entity['meta-type'] === 'command';
const isType = (entity: JsonObject): boolean => !isEvent(entity) && !isCommand(entity);

function numberOf(name: JsonValue | undefined): number {
  return typeof name === 'string' && /^\d+$/.test(name) ? Number(name) : 0;
}

const REFERENCES = ['element-type', 'arg-type', 'ret-type'] as const;
const LISTS = ['members', 'variants'] as const;

function references(entity: JsonObject): JsonValue[] {
  const listed = LISTS.flatMap((list) => (entity[list] ?? []) as JsonObject[]).map(({ type }) => type);
  return [...REFERENCES.map((key) => entity[key]), ...listed].filter((name) => name !== undefined);
}

function renamed(entity: JsonObject, first: number): JsonObject {
  const moved = (name: JsonValue | undefined): JsonValue =>
    typeof name === 'string'
      ? name.replace(/^(\[?)(\d+)/, (_, open: string, n: string) => open + (first + Number(n)))
      : (name ?? null);
  const result: JsonObject = { ...entity };
  for (const key of [...REFERENCES, ...(isType(entity) ? ['name'] : [])])
    if (result[key] !== undefined) result[key] = moved(result[key]);
  for (const list of LISTS)
    if (result[list] !== undefined)
      result[list] = (result[list] as JsonObject[]).map((member) =>
        member['type'] === undefined ? member : { ...member, type: moved(member['type']) },
      );
  return result;
}
