@own-service
Feature: Preemption
  An urgent task that would be late takes the slot of one that can wait, where the operator allows it.
  Whoever makes way loses nothing but time: the text goes on as if nothing had happened.

  Background:
    Given pool "patient" with 1 engine of 1 slot and
      """
      preemption: { mode: soft }
      """
    And pool "hurried" with 1 engine of 1 slot and
      """
      preemption: { mode: hard }
      """
    And pool "protected" with 1 engine of 1 slot and
      """
      preemption: { mode: hard, hard_requirements: { protect_priorities: [interactive, batch] } }
      """

  @ORCH-3086
  Scenario: A running task makes way and goes on where it was
    Given the engines of "hurried" stop after 5 tokens of each task
    When acme submits to "hurried"
      | task   | priority | max_tokens | ctx  | deadline_ms |
      | report | batch    | 400        | 2048 | 100000      |
    And 5 tokens of "report" are read
    And acme submits to "hurried"
      | task     | max_tokens | deadline_ms |
      | question | 2          | 3000        |
    Then "question" ends well
    When the engines of "hurried" go on
    Then "report" ends well
    And the explanation of "report" says ended, with these decisions
      | decision   | reason    |
      | admitted   | free-slot |
      | dispatched | free-slot |
      | preempted  | urgent    |
      | resumed    | preempted |
      | ended      | completed |

  @ORCH-3086
  Scenario: Without hard preemption what runs ends first
    Given the engines of "patient" stop after 5 tokens of each task
    When acme submits to "patient"
      | task   | priority | max_tokens | ctx  | deadline_ms |
      | report | batch    | 400        | 2048 | 100000      |
    And 5 tokens of "report" are read
    And acme submits to "patient"
      | task     | max_tokens | deadline_ms |
      | question | 2          | 60000       |
    And the engines of "patient" go on
    Then "patient" ran "report", "question" in this order
    And "report" and "question" end well

  @ORCH-3086
  Scenario: A protected priority is never interrupted
    Given the engines of "protected" stop after 5 tokens of each task
    When acme submits to "protected"
      | task   | priority | max_tokens | ctx  | deadline_ms |
      | report | batch    | 400        | 2048 | 100000      |
    And 5 tokens of "report" are read
    And acme submits to "protected"
      | task     | max_tokens | deadline_ms |
      | question | 2          | 60000       |
    And the engines of "protected" go on
    Then "protected" ran "report", "question" in this order
    And "report" and "question" end well
