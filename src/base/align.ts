/** Arithmetic on byte offsets. All of it in plain numbers: exact below 2^53, unlike the bitwise operators. */
export function alignDown(value: number, unit: number): number {
  return value - (value % unit);
}

export function alignUp(value: number, unit: number): number {
  const rest = value % unit;
  return rest === 0 ? value : value + unit - rest;
}

export function isAligned(value: number, unit: number): boolean {
  return value % unit === 0;
}

export function divideRoundUp(value: number, unit: number): number {
  return Math.ceil(value / unit);
}

export function isPowerOfTwo(value: number): boolean {
  return Number.isSafeInteger(value) && value > 0 && Number.isInteger(Math.log2(value));
}
