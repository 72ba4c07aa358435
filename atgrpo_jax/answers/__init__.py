"""What an answer to a mathematical problem stands for, and when two are equal.

It runs in the sandbox, where sympy may work on what a model wrote for as long as the limits allow; so these
files import nothing of ours but each other.
"""
