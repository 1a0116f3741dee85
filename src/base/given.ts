/** The members of T that may be undefined become optional ones. */
export type Given<T> = { [K in keyof T as undefined extends T[K] ? never : K]: T[K] } & {
  [K in keyof T as undefined extends T[K] ? K : never]?: Exclude<T[K], undefined>;
};

/** The same object without the members that are undefined. */
export function given<T extends object>(members: T): Given<T> {
  const there: Record<string, unknown> = {};
  for (const key of Object.keys(members)) {
    const value = members[key as keyof T];
    if (value !== undefined) there[key] = value;
  }
  return there as Given<T>;
}
