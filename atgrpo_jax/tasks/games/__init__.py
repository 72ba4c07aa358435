"""Holds Plan-Path, Sokoban and Sudoku: some roles propose a list of actions, another decides."""
