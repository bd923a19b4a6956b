@own-service
Feature: The story of a task in the log
  A user asks what became of a request. The log tells it in a few lines, from the promise to the
  end, and every line can be found by the task and by the errand.

  Background:
    Given pool "single" with 1 engine of 1 slot

  @ORCH-3029 @OC-CTRL-2050 @ORCH-3094
  Scenario: From the promise to the end
    Given acme calls this errand "invoice-12"
    And all slots of "single" are taken
    When acme submits to "single"
      | task    | priority | max_tokens | deadline_ms |
      | invoice | batch    | 6          | 90000       |
    And the engines of "single" go on
    Then "invoice" ends well
    And the log tells of "invoice"
      | event         | correlation_id | tenant_id | priority | queue_position | pool_id |
      | task.admitted | invoice-12     | acme      | batch    | 0              | single  |
      | task.ended    | invoice-12     | acme      | batch    |                | single  |

  @ORCH-2006 @OC-CTRL-2051
  Scenario: A refusal leaves a trace as well
    Given acme calls this errand "invoice-13"
    And the scraper has read the metrics
    When acme submits to "single"
      | task    | ctx      |
      | invoice | 99999999 |
    Then the answer is 400
    And since then have grown
      | tasks_rejected_total | 1 |
